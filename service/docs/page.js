// The page at /docs: Swagger UI, and a sign-in whose token it sends.
//
// The tokens are kept only in this module's memory, never in the browser's storage. Reloading the
// page or signing out leaves nothing behind.

const form = document.getElementById("sign-in");
const signedIn = document.getElementById("signed-in");
const message = document.getElementById("message");

const SCHEME = "access_token"; // the security scheme's name in /openapi.json
const EARLY_MS = 10_000; // how long before its expiry a token is refreshed

let session = null; // { token, refreshToken, staleAt }

const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();

const drawn = draw();
drawn.catch(() => (message.textContent = "The API description could not be loaded. Reload the page."));

async function draw() {
  const response = await fetch("/openapi.json");
  const spec = withoutDefaults(await response.json());
  return new Promise((resolve) => {
    const ui = SwaggerUIBundle({
      domNode: document.getElementById("api"),
      spec,
      validatorUrl: null, // the default sends the description to another host
      deepLinking: true,
      tryItOutEnabled: true,
      displayRequestDuration: true,
      defaultModelsExpandDepth: 0,
      tagsSorter: (one, other) => isOperation(one) - isOperation(other),
      requestInterceptor: renew,
      responseInterceptor: notice,
      onComplete: () => resolve(ui),
    });
  });
}

// Swagger UI sends the examples of headers: the key or the version of another request.
function withoutDefaults(spec) {
  for (const path of Object.values(spec.paths)) {
    for (const operation of Object.values(path)) {
      for (const parameter of operation.parameters ?? []) {
        if (parameter.in === "header") delete parameter.example;
      }
    }
  }
  return spec;
}

// The description lists probes and files first; the page shows them last.
function isOperation(tag) {
  return Number(tag === "operation" || tag === "docs");
}

async function post(path, body, token) {
  const response = await fetch(`/api/v1/auth/${path}`, {
    method: "POST",
    headers: {
      ...(body && { "Content-Type": "application/json" }),
      ...(token && { Authorization: `Bearer ${token}` }),
    },
    body: body && JSON.stringify(body),
  });
  const text = await response.text();
  const answer = text ? JSON.parse(text) : {};
  if (response.ok) return answer;
  const errors = (answer.errors ?? []).map(({ pointer, detail }) => `${pointer.slice(2)}: ${detail}`);
  throw new Error(errors.join(" ") || answer.detail);
}

async function begin(tokens) {
  session = {
    token: tokens.access_token,
    refreshToken: tokens.refresh_token,
    staleAt: Date.now() + tokens.expires_in * 1000 - EARLY_MS,
  };
  (await drawn).preauthorizeApiKey(SCHEME, session.token);
}

async function end(why) {
  session = null;
  form.hidden = false;
  signedIn.hidden = true;
  message.textContent = why;
  (await drawn).authActions.logout([SCHEME]);
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { email, password } = form.elements;
  const action = event.submitter?.value ?? "login";
  message.textContent = "";
  form.inert = true;
  try {
    const answer = await post(action, { email: email.value, password: password.value });
    password.value = "";
    if (answer.access_token) {
      await begin(answer);
      document.getElementById("who").textContent = email.value;
      form.hidden = true;
      signedIn.hidden = false;
    } else {
      message.textContent = "Check your email, open the link, then sign in.";
    }
  } catch (error) {
    message.textContent = error.message;
  } finally {
    form.inert = false;
  }
});

document.getElementById("sign-out").addEventListener("click", async () => {
  // Clear the page and the memory, whether or not the request succeeds.
  await post("logout", { refresh_token: session?.refreshToken }, session?.token).catch(() => {});
  history.replaceState(null, "", location.pathname);
  location.reload();
});

// Runs before each request, and refreshes a token that is about to expire.
async function renew(request) {
  const sent = request.headers?.Authorization;
  if (session && sent === `Bearer ${session.token}` && Date.now() > session.staleAt) {
    try {
      await begin(await post("refresh", { refresh_token: session.refreshToken }));
      request.headers.Authorization = `Bearer ${session.token}`;
    } catch (error) {
      await end(error.message);
    }
  }
  return request;
}

// Runs after each response, because the request may have ended the session.
async function notice(response) {
  if (session && /invalid_token/.test(response.headers?.["www-authenticate"])) {
    await end("The session has ended. Sign in again.");
  }
  return response;
}
