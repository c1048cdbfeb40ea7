import {
  adminListUsers,
  sessionsListMine,
  sessionsLogin,
  usersMergeMe,
  usersReadMe,
  usersRegister,
} from "../.generated/orval/api";
import type { Problem } from "../.generated/orval/api";
import { admin, check, credentials, report, typed } from "./calls";

function bearer(token: string) {
  return { Authorization: `Bearer ${token}` };
}

function describe(problem: Problem): string {
  return [problem.status, problem.code, ...(problem.errors ?? []).map((each) => each.pointer)].join(" ");
}

/** Return the successful response. */
function success<Response extends { status: number }, Status extends Response["status"]>(
  response: Response,
  status: Status,
): Extract<Response, { status: Status }> {
  check(response.status === status, `${response.status} instead of ${status}`);
  return response as Extract<Response, { status: Status }>;
}

async function main() {
  const registered = success(await usersRegister(credentials), 201);
  const role: "user" | "support" | "admin" = typed(registered.data.user.role);
  report("users_register", role);

  const tokens = success(await sessionsLogin(credentials), 200).data;
  report("sessions_login", typed(tokens.token_type));
  const headers = bearer(tokens.access_token);

  const me = success(await usersReadMe({ headers }), 200);
  check(typed(me.data.email) === credentials.email, "email");
  report("users_read_me", "its email");

  const merged = success(
    await usersMergeMe(
      { settings: { ui_theme: "dark", editor: { tabs: [2, null] } } },
      { headers: { ...headers, "If-Match": me.headers.get("ETag")! } },
    ),
    200,
  );
  check(JSON.stringify(merged.data.settings.editor) === '{"tabs":[2,null]}', "settings");
  report("users_merge_me", String(merged.data.settings.ui_theme));

  const sessions = success(await sessionsListMine(undefined, { headers }), 200);
  report("sessions_list_mine", `${typed(sessions.data.items).length} sessions`);

  const administrator = success(await sessionsLogin(admin), 200).data;
  const accounts = success(
    await adminListUsers(
      { email: credentials.email, role: "user", sort: "-email", settings: '{"ui_theme": "dark"}', count: "exact" },
      { headers: bearer(administrator.access_token) },
    ),
    200,
  );
  check(accounts.data.items.every((each) => each.settings.ui_theme === "dark"), "filter");
  report("admin_list_users", `${typed(accounts.data.count)} account`);

  const refused = success(await sessionsLogin({ ...credentials, password: "another passphrase" }), 401);
  report("sessions_login", describe(typed(refused.data)));

  const invalid = success(await usersRegister({ email: "no email", password: credentials.password }), 422);
  report("users_register", describe(typed(invalid.data)));

  const stale = success(
    await usersMergeMe({ name: "Ada" }, { headers: { ...headers, "If-Match": '"1"' } }),
    412,
  );
  report("users_merge_me", describe(typed(stale.data)));
}

main();
