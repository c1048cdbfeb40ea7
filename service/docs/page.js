// The page at /docs: Swagger UI, and a sign-in whose token it sends.

import { showFactors } from "./factors.js";
import * as session from "./session.js";
import { attempt, say } from "./session.js";

const api = document.getElementById("api");
const form = document.getElementById("sign-in");
const passkeyButton = document.getElementById("use-passkey");
const signedIn = document.getElementById("signed-in");

const SCHEME = "access_token"; // the security scheme's name in /openapi.json
// Tags of probes and files, below all others.
const LAST = ["health", "auth", "factors", "openapi", "docs"];

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

session.watch(async (token) => {
  const { authActions, preauthorizeApiKey } = await drawn;
  if (token) return preauthorizeApiKey(SCHEME, token);
  form.hidden = false;
  signedIn.hidden = true;
  authActions.logout([SCHEME]);
});

// Runs an action that signs in and returns the email, unless the user has to do more, or gives up.
function enter(action) {
  return attempt(form, async () => {
    const email = await action();
    if (!session.isSignedIn()) return;
    document.getElementById("who").textContent = email;
    document.querySelector("#proof [autocomplete=username]").value = email; // for password managers
    form.elements.password.value = "";
    form.hidden = true;
    signedIn.hidden = false;
    signedIn.focus();
  });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const email = form.elements.email.value;
  const credentials = { email, password: form.elements.password.value };
  const action = event.submitter?.value === "register" ? register : session.signIn;
  enter(async () => {
    await action(credentials);
    return email;
  });
});

async function register(credentials) {
  const tokens = await session.send("POST", "auth/register", credentials);
  if (tokens.access_token) return session.begin(tokens);
  form.elements.password.value = "";
  say("Check your email, open the link, then sign in.", "news");
}

function enterWithPasskey(given) {
  return enter(async () => {
    await session.signInWithPasskey(given);
    return (await session.call("GET", "users/me")).email;
  });
}

passkeyButton.hidden = !session.hasPasskeys;
passkeyButton.addEventListener("click", () => enterWithPasskey());

async function offerPasskeys() {
  const given = await session.offerPasskeys().catch(() => null); // none was chosen
  if (given) await enterWithPasskey(given);
}

form.elements.email.addEventListener("focus", offerPasskeys);
offerPasskeys();

document.getElementById("open-factors").addEventListener("click", showFactors);
document.getElementById("sign-out").addEventListener("click", session.signOut);

// Swagger UI's dialog has a button to log out, which means the page's session if there is one.
function logout(original) {
  return (schemes) => (session.isSignedIn() ? session.signOut() : original(schemes));
}

// Runs before each request, and refreshes a token that is about to expire.
async function renew(request) {
  if (session.owns(request.headers?.Authorization)) {
    const token = await session.freshToken().catch(() => null); // it has said why
    if (token) request.headers.Authorization = `Bearer ${token}`;
  }
  return request;
}

// Runs after each response, because the request may have ended the session.
async function notice(response) {
  if (session.isSignedIn() && /invalid_token/.test(response.headers?.["www-authenticate"])) {
    await session.end("The session has ended. Sign in again.");
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
