// The page at /docs: Swagger UI, and a sign-in whose token it sends.
//
// The tokens are kept only in this module's memory, never in the browser's storage. Reloading the
// page or signing out leaves nothing behind.

const api = document.getElementById("api");
const form = document.getElementById("sign-in");
const signedIn = document.getElementById("signed-in");
const message = document.getElementById("message");

const SCHEME = "access_token"; // the security scheme's name in /openapi.json
const LAST = ["health", "auth", "openapi", "docs"]; // tags of probes and files, below all others
const EARLY_MS = 10_000; // how long before its expiry a token is refreshed

let session = null; // { token, refreshToken, staleAt }

const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();

const drawn = draw();
drawn.catch(() => say("The API description could not be loaded. Reload the page."));

if (history.state?.signedOut) {
  history.replaceState(null, "");
  say("Signed out.", "news");
  form.elements.email.focus();
}

function say(text, kind = "error") {
  message.className = kind;
  message.textContent = text;
}

async function draw() {
  const response = await fetch("/openapi.json");
  const spec = withoutDefaults(await response.json());
  return new Promise((resolve) => {
    const ui = SwaggerUIBundle({
      domNode: api,
      spec,
      validatorUrl: null, // the default sends the description to another host
      deepLinking: true,
      tryItOutEnabled: true,
      displayRequestDuration: true,
      defaultModelsExpandDepth: 0,
      tagsSorter: (one, other) => LAST.includes(one) - LAST.includes(other),
      plugins: [{ statePlugins: { auth: { wrapActions: { logout } } } }],
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
  say(why);
  (await drawn).authActions.logout([SCHEME]);
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { email, password } = form.elements;
  const action = event.submitter?.value ?? "login";
  const focused = document.activeElement;
  say("");
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
      say("Check your email, open the link, then sign in.", "news");
    }
  } catch (error) {
    say(error.message);
  } finally {
    form.inert = false; // it took the focus away
    (form.hidden ? signedIn : focused).focus();
  }
});

async function signOut() {
  // Clear the page and the memory, whether or not the request succeeds.
  await post("logout", { refresh_token: session?.refreshToken }, session?.token).catch(() => {});
  history.replaceState({ signedOut: true }, "", location.pathname);
  location.reload();
}

document.getElementById("sign-out").addEventListener("click", signOut);

// Swagger UI's dialog has a button to log out, which means the page's session if there is one.
function logout(original) {
  return (schemes) => (session ? signOut() : original(schemes));
}

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

// Swagger UI's markup, mended for keyboards and screen readers each time it draws something.
const MENDED = {
  ".information-container": { role: "region", "aria-label": "About this API" },
  ".info__summary": { role: "heading", "aria-level": "2" },
  ".opblock-summary-control a": { href: null }, // a link inside a button
  ".responses-table": { role: null }, // otherwise a landmark without a name
  ".live-responses-table .highlight-code > pre": { tabindex: "0" }, // scrolls
  ".examples-select-element": { "aria-label": "Example" },
  ".body-param__text": { "aria-label": "Request body" },
  "[data-param-name] :is(input:not([type=checkbox]), select, textarea)": {
    "aria-label": (field) => field.closest("[data-param-name]").dataset.paramName,
  },
  ".modal-ux": { role: "dialog", "aria-modal": "true", "aria-label": "Authorization" },
  ".modal-ux h6": { role: "presentation" },
  ".modal-ux :is(.btn, input)": { "aria-label": null }, // they have other names on them
  ".close-modal": { "aria-label": "Close" },
};

let lock = null; // opened the dialog, and gets the focus back
let behind = []; // what the open dialog covers

function mend() {
  for (const [selector, attributes] of Object.entries(MENDED)) {
    for (const element of api.querySelectorAll(selector)) {
      for (const [name, value] of Object.entries(attributes)) {
        if (value === null) element.removeAttribute(name);
        else element.setAttribute(name, typeof value === "function" ? value(element) : value);
      }
    }
  }
  const dialog = api.querySelector(".dialog-ux");
  if (!dialog && behind.length) {
    for (const element of behind) element.inert = false;
    behind = [];
    lock?.focus();
  } else if (dialog) {
    for (let inner = dialog; inner !== document.body; inner = inner.parentElement) {
      behind.push(...[...inner.parentElement.children].filter((one) => one !== inner && !one.inert));
    }
    for (const element of behind) element.inert = true;
    if (!dialog.contains(document.activeElement)) dialog.querySelector("input, .btn").focus();
  }
}

new MutationObserver(mend).observe(api, { childList: true, subtree: true });
api.addEventListener("click", ({ target }) => {
  lock = target.closest(".authorization__btn") ?? lock;
});
document.addEventListener("keydown", ({ key }) => {
  if (key === "Escape") api.querySelector(".close-modal")?.click();
});
