// The session of the page at /docs: its tokens, its requests, and the proofs that some ask for.
//
// The tokens are kept only in this module's memory, never in the browser's storage. Reloading the
// page or signing out leaves nothing behind.

const EARLY_MS = 10_000; // how long before its expiry a token is refreshed

// The browser's own words about passkeys are for developers.
const WORDS = {
  NotAllowedError: "No passkey was used: you refused, or it took too long.",
  InvalidStateError: "You have a passkey for this account here already.",
  SecurityError: "Passkeys of this service do not work at this page's URL.",
};

const proof = document.getElementById("proof");

let session = null; // { token, refreshToken, staleAt }
let tell = null; // gets each new access token, and null when the session ends
let asking = null; // stops the request for a passkey: a browser takes one at a time

export function watch(listener) {
  tell = listener;
}

export const isSignedIn = () => session !== null;
export const owns = (header) => session !== null && header === `Bearer ${session.token}`;

// Says it in the dialog on top, or in the page's head.
export function say(text, kind = "error") {
  const top = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document;
  const message = top.querySelector("[role=status]");
  message.className = kind;
  message.textContent = text;
}

// Runs what a form is for, and says what goes wrong. The form takes no input until then.
export async function attempt(form, action) {
  const focused = document.activeElement;
  say("");
  form.inert = true;
  try {
    await action();
  } catch (error) {
    if (error.name !== "AbortError") say(WORDS[error.name] ?? error.message);
  } finally {
    form.inert = false; // it took the focus away
    const { activeElement } = document;
    if (activeElement === document.body || !activeElement.checkVisibility()) {
      const next = focused.checkVisibility() ? focused : form.closest("dialog")?.querySelector("h2");
      next?.focus();
    }
  }
}

export async function send(method, path, body, token) {
  const response = await fetch(`/api/v1/${path}`, {
    method,
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
  const challenge = response.headers.get("WWW-Authenticate");
  throw Object.assign(new Error(errors.join(" ") || answer.detail), { problem: answer, challenge });
}

// Sends a request of the signed-in user. If it needs a better proof, asks for that, and tries again.
export async function call(method, path, body) {
  try {
    return await send(method, path, body, await freshToken());
  } catch (error) {
    const { problem, challenge } = error;
    if (problem?.code === "invalid_token") await end(problem.detail);
    if (problem?.code !== "insufficient_authentication") throw error;
    await proveAgain(/acr_values="aal2"/.test(challenge));
    return send(method, path, body, session.token);
  }
}

export async function begin(tokens) {
  asking?.abort();
  session = {
    token: tokens.access_token,
    refreshToken: tokens.refresh_token ?? session.refreshToken,
    staleAt: Date.now() + tokens.expires_in * 1000 - EARLY_MS,
  };
  await tell(session.token);
}

export async function end(why) {
  session = null;
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  say(why);
  await tell(null);
}

// Returns the access token, or a new one if it is about to expire. Ends the session if it gets none.
export async function freshToken() {
  if (session && Date.now() > session.staleAt) {
    try {
      await begin(await send("POST", "auth/refresh", { refresh_token: session.refreshToken }));
    } catch (error) {
      await end(error.message);
      throw error;
    }
  }
  return session?.token;
}

export async function signOut() {
  // Clear the page and the memory, whether or not the request succeeds.
  const body = { refresh_token: session?.refreshToken };
  await send("POST", "auth/logout", body, session?.token).catch(() => {});
  history.replaceState({ signedOut: true }, "", location.pathname);
  location.reload();
}

// Signs in, with a second factor if the account has one. Does nothing if the user gives that up.
export async function signIn(credentials) {
  let tokens;
  try {
    tokens = await send("POST", "auth/login", credentials);
  } catch (error) {
    if (error.problem?.code !== "second_factor_required") throw error;
    const { challenge, factors } = error.problem;
    tokens = await ask(
      factors,
      () => usePasskey("auth/second-factor/options", { challenge }),
      (given) => send("POST", "auth/second-factor", { challenge, ...given }),
    );
  }
  if (tokens) await begin(tokens);
}

export async function signInWithPasskey(given) {
  await begin(await send("POST", "auth/passkey", given ?? (await usePasskey())));
}

async function proveAgain(secondFactor) {
  const ways = secondFactor
    ? (await send("GET", "users/me/factors", undefined, session.token)).items.map(({ type }) => type)
    : ["password"];
  const answer = await ask(
    ways,
    () => usePasskey(),
    (given) => send("POST", "auth/reauthenticate", given, session.token),
  );
  if (!answer) throw new Error("Nothing has changed.");
  await begin(answer);
}

// Asks for a proof until `finish` takes one. Returns its result, or undefined if the user gives up.
function ask(ways, getPasskey, finish) {
  for (const form of proof.querySelectorAll("[data-way]")) {
    const { way } = form.dataset;
    form.hidden = !ways.includes(way) || (way === "passkey" && !hasPasskeys);
  }
  proof.showModal();
  say("");
  return new Promise((resolve) => {
    let result;
    proof.onsubmit = (event) => {
      const form = event.target;
      if (!form.dataset.way) return; // it closes the dialog
      event.preventDefault();
      attempt(form, async () => {
        const isPasskey = form.dataset.way === "passkey";
        try {
          result = await finish(isPasskey ? await getPasskey() : textOf(form));
          proof.close();
        } catch (error) {
          if (error.problem?.code === "invalid_challenge") proof.close();
          throw error;
        }
      });
    };
    proof.onclose = () => {
      asking?.abort();
      for (const form of proof.querySelectorAll("form")) form.reset();
      resolve(result);
    };
  });
}

// Apps show codes in two groups.
export function textOf(form) {
  const given = Object.fromEntries(new FormData(form));
  return { ...given, ...(given.code && { code: given.code.replace(/\s/g, "") }) };
}

// Passkeys, in browsers that read the API's JSON

export const hasPasskeys = Boolean(globalThis.PublicKeyCredential?.parseRequestOptionsFromJSON);

// Returns what the API takes of a passkey that the user has chosen.
async function usePasskey(path = "auth/passkey/options", body, mediation) {
  asking?.abort();
  const mine = (asking = new AbortController());
  try {
    const { challenge_id, options } = await send("POST", path, body);
    setTimeout(() => mine.abort(), options.timeout); // browsers offer passkeys without a limit
    const publicKey = PublicKeyCredential.parseRequestOptionsFromJSON(options);
    const chosen = await navigator.credentials.get({ publicKey, mediation, signal: mine.signal });
    return { challenge_id, credential: chosen.toJSON() };
  } finally {
    if (asking === mine) asking = null;
  }
}

// The same for one that the browser offers where it fills in the email. Returns null if it cannot.
export async function offerPasskeys() {
  const can = hasPasskeys && (await PublicKeyCredential.isConditionalMediationAvailable?.());
  return can && !asking ? usePasskey(undefined, undefined, "conditional") : null;
}

// Returns what the API takes of a new passkey.
export async function createPasskey({ challenge_id, options }) {
  const publicKey = PublicKeyCredential.parseCreationOptionsFromJSON(options);
  const created = await navigator.credentials.create({ publicKey });
  return { challenge_id, credential: created.toJSON() };
}
