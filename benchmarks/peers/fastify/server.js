// Fastify + postgres.js + @fastify/jwt, as their documentation writes it.

import Fastify from "fastify";
import jwt from "@fastify/jwt";
import postgres from "postgres";

const sql = postgres(process.env.DATABASE_URL);
const app = Fastify();
app.register(jwt, { secret: process.env.JWT_SECRET });

const columns = sql`
  id, email, email_verified_at is not null as email_verified, name, role, settings,
  created_at, updated_at
`;
const text = { type: "string" };
const userProperties = {
  id: text,
  email: text,
  email_verified: { type: "boolean" },
  name: text,
  role: text,
  settings: { type: "object", additionalProperties: true },
  created_at: { type: "string", format: "date-time" },
  updated_at: { type: "string", format: "date-time" },
};
const accountProperties = {
  ...userProperties,
  status: text,
  suspended_until: { type: ["string", "null"], format: "date-time" },
  suspension_reason: { type: ["string", "null"] },
  purge_at: { type: ["string", "null"], format: "date-time" },
  version: { type: "integer" },
};
const user = { type: "object", properties: userProperties };
const accounts = {
  type: "object",
  properties: {
    items: { type: "array", items: { type: "object", properties: accountProperties } },
  },
};

async function signedIn(request) {
  await request.jwtVerify();
}

async function currentUser(request, reply) {
  const [row] = await sql`select ${columns} from users where id = ${request.user.sub}`;
  if (!row) return reply.code(401).send();
  return row;
}

app.get(
  "/users/me",
  { onRequest: signedIn, schema: { response: { 200: user } } },
  currentUser,
);

app.patch(
  "/users/me",
  {
    onRequest: signedIn,
    schema: {
      body: { type: "object", required: ["name"], properties: { name: text } },
      response: { 200: user },
    },
  },
  async (request) => {
    const [row] = await sql`
      update users set name = ${request.body.name}, version = version + 1, updated_at = now()
      where id = ${request.user.sub}
      returning ${columns}
    `;
    return row;
  },
);

app.get(
  "/users",
  { onRequest: signedIn, schema: { response: { 200: accounts } } },
  async (request, reply) => {
    const caller = await currentUser(request, reply);
    if (caller.role !== "admin") return reply.code(403).send();
    const items = await sql`
      select ${columns}, status, suspended_until, suspension_reason, purge_at, version
      from users where role = ${request.query.role}
      order by created_at desc, id desc limit ${Number(request.query.limit)}
    `;
    return { items };
  },
);

app.get("/health/live", async () => ({ status: "pass" }));

await app.listen({ host: "127.0.0.1", port: Number(process.env.PORT) });
