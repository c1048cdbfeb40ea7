import createClient from "openapi-fetch";

import type { components, paths } from "../.generated/openapi-typescript/schema";
import { admin, check, credentials, report, typed, url } from "./calls";

const client = createClient<paths>({ baseUrl: url });

function bearer(token: string) {
  return { Authorization: `Bearer ${token}` };
}

function describe(problem: components["schemas"]["Problem"]): string {
  return [problem.status, problem.code, ...(problem.errors ?? []).map((each) => each.pointer)].join(" ");
}

async function main() {
  const registered = await client.POST("/api/v1/auth/register", { body: credentials });
  const role: "user" | "support" | "admin" = typed(registered.data!.user.role);
  report("users_register", role);

  const tokens = (await client.POST("/api/v1/auth/login", { body: credentials })).data!;
  report("sessions_login", typed(tokens.token_type));
  const headers = bearer(tokens.access_token);

  const me = await client.GET("/api/v1/users/me", { headers });
  check(typed(me.data!.email) === credentials.email, "email");
  report("users_read_me", "its email");

  const merged = await client.PATCH("/api/v1/users/me", {
    params: { header: { "If-Match": me.response.headers.get("ETag")! } },
    body: { settings: { ui_theme: "dark", editor: { tabs: [2, null] } } },
    headers,
  });
  check(JSON.stringify(merged.data!.settings.editor) === '{"tabs":[2,null]}', "settings");
  report("users_merge_me", String(merged.data!.settings.ui_theme));

  const sessions = await client.GET("/api/v1/users/me/sessions", { headers });
  report("sessions_list_mine", `${typed(sessions.data!.items).length} sessions`);

  const administrator = (await client.POST("/api/v1/auth/login", { body: admin })).data!;
  const accounts = await client.GET("/api/v1/users", {
    params: { query: { email: credentials.email, role: "user", sort: "-email", settings: '{"ui_theme": "dark"}', count: "exact" } },
    headers: bearer(administrator.access_token),
  });
  check(accounts.data!.items.every((each) => each.settings.ui_theme === "dark"), "filter");
  report("admin_list_users", `${typed(accounts.data!.count)} account`);

  const refused = await client.POST("/api/v1/auth/login", {
    body: { ...credentials, password: "another passphrase" },
  });
  report("sessions_login", describe(typed(refused.error!)));

  const invalid = await client.POST("/api/v1/auth/register", { body: { email: "no email", password: credentials.password } });
  report("users_register", describe(typed(invalid.error!)));

  const stale = await client.PATCH("/api/v1/users/me", {
    params: { header: { "If-Match": '"1"' } },
    body: { name: "Ada" },
    headers,
  });
  report("users_merge_me", describe(typed(stale.error!)));
}

main();
