import {
  adminListUsers,
  sessionsListMine,
  sessionsLogin,
  usersMergeMe,
  usersReadMe,
  usersRegister,
} from "../.generated/hey-api";
import { client } from "../.generated/hey-api/client.gen";
import type { Problem } from "../.generated/hey-api";
import { admin, check, credentials, report, typed, url } from "./calls";

function describe(problem: Problem): string {
  return [problem.status, problem.code, ...(problem.errors ?? []).map((each) => each.pointer)].join(" ");
}

async function main() {
  client.setConfig({ baseUrl: url });

  const registered = await usersRegister({ body: credentials });
  const role: "user" | "support" | "admin" = typed(registered.data!.user.role);
  report("users_register", role);

  const tokens = (await sessionsLogin({ body: credentials })).data!;
  report("sessions_login", typed(tokens.token_type));
  const auth = tokens.access_token;

  const me = await usersReadMe({ auth });
  check(typed(me.data!.email) === credentials.email, "email");
  report("users_read_me", "its email");

  const merged = await usersMergeMe({
    auth,
    headers: { "If-Match": me.response!.headers.get("ETag")! },
    body: { settings: { ui_theme: "dark", editor: { tabs: [2, null] } } },
  });
  check(JSON.stringify(merged.data!.settings.editor) === '{"tabs":[2,null]}', "settings");
  report("users_merge_me", String(merged.data!.settings.ui_theme));

  const sessions = await sessionsListMine({ auth });
  report("sessions_list_mine", `${typed(sessions.data!.items).length} sessions`);

  const administrator = (await sessionsLogin({ body: admin })).data!;
  const accounts = await adminListUsers({
    auth: administrator.access_token,
    query: { email: credentials.email, role: "user", sort: "-email", settings: '{"ui_theme": "dark"}', count: "exact" },
  });
  check(accounts.data!.items.every((each) => each.settings.ui_theme === "dark"), "filter");
  report("admin_list_users", `${typed(accounts.data!.count)} account`);

  const refused = await sessionsLogin({ body: { ...credentials, password: "another passphrase" } });
  report("sessions_login", describe(typed(refused.error!)));

  const invalid = await usersRegister({ body: { email: "no email", password: credentials.password } });
  report("users_register", describe(typed(invalid.error!)));

  const stale = await usersMergeMe({ auth, headers: { "If-Match": '"1"' }, body: { name: "Ada" } });
  report("users_merge_me", describe(typed(stale.error!)));
}

main();
