import { AdminApi, Configuration, ResponseError, SessionsApi, UsersApi } from "../.generated/openapi-generator-typescript";
import { ProblemFromJSON } from "../.generated/openapi-generator-typescript";
import { admin, check, credentials, report, typed, url } from "./calls";

function configured(accessToken?: string) {
  return new Configuration({ basePath: url, accessToken });
}

/** Return the problem that a call fails with. */
async function failure(call: Promise<unknown>): Promise<string> {
  try {
    await call;
  } catch (error) {
    if (!(error instanceof ResponseError)) throw error;
    const problem = typed(ProblemFromJSON(await error.response.json()));
    return [problem.status, problem.code, ...(problem.errors ?? []).map((each) => each.pointer)].join(" ");
  }
  throw new Error("no failure");
}

async function main() {
  const registered = await new UsersApi(configured()).usersRegister({ register: credentials });
  const role: "user" | "support" | "admin" = typed(registered.user.role);
  report("users_register", role);

  const tokens = await new SessionsApi(configured()).sessionsLogin({ login: credentials });
  report("sessions_login", typed(tokens.tokenType));
  const users = new UsersApi(configured(tokens.accessToken));

  const me = await users.usersReadMeRaw({});
  check(typed((await me.value()).email) === credentials.email, "email");
  report("users_read_me", "its email");

  const merged = await users.usersMergeMe({
    ifMatch: me.raw.headers.get("ETag")!,
    mergeProfile: { settings: { uiTheme: "dark", editor: { tabs: [2, null] } } },
  });
  check(JSON.stringify(merged.settings.editor) === '{"tabs":[2,null]}', "settings");
  report("users_merge_me", String(merged.settings.uiTheme));

  const sessions = await new SessionsApi(configured(tokens.accessToken)).sessionsListMine();
  check(typed(sessions.items[0].createdAt) instanceof Date, "time");
  report("sessions_list_mine", `${sessions.items.length} sessions`);

  const administrator = await new SessionsApi(configured()).sessionsLogin({ login: admin });
  const accounts = await new AdminApi(configured(administrator.accessToken)).adminListUsers({
    email: credentials.email,
    role: "user",
    sort: "-email",
    settings: '{"ui_theme": "dark"}',
    count: "exact",
  });
  check(accounts.items.every((each) => each.settings.uiTheme === "dark"), "filter");
  report("admin_list_users", `${typed(accounts.count)} account`);

  const anonymous = new SessionsApi(configured());
  const wrong = { ...credentials, password: "another passphrase" };
  report("sessions_login", await failure(anonymous.sessionsLogin({ login: wrong })));

  const invalid = { email: "no email", password: credentials.password };
  report("users_register", await failure(new UsersApi(configured()).usersRegister({ register: invalid })));

  report("users_merge_me", await failure(users.usersMergeMe({ ifMatch: '"1"', mergeProfile: { name: "Ada" } })));
}

main();
