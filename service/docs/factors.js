// The dialog "Second factors" of the page at /docs: apps that make codes, passkeys, recovery codes.

import { attempt, call, createPasskey, hasPasskeys, say, textOf } from "./session.js";

const dialog = document.getElementById("factors");
const list = dialog.querySelector("ul");
const row = dialog.querySelector("template");
const recovery = document.getElementById("recovery");
const newCodes = document.getElementById("new-codes");
const confirmation = document.getElementById("confirm");
const add = document.getElementById("add");

const PATH = "users/me/factors";
const TYPES = { totp: "App", passkey: "Passkey" };

let pending = null; // the app that is not confirmed yet

// What the buttons do, by their value.
const ACTIONS = {
  rename: (form) => call("PATCH", `${PATH}/${form.dataset.id}`, textOf(form)),

  async remove(form) {
    const { defaultValue } = form.elements.name;
    if (confirm(`Remove “${defaultValue}”? All other sessions will end.`)) {
      await call("DELETE", `${PATH}/${form.dataset.id}`);
      clear();
    }
  },

  async totp(form) {
    pending = await call("POST", `${PATH}/totp`, nameIn(form));
    const svg = encodeURIComponent(pending.qr_svg);
    confirmation.querySelector("img").src = `data:image/svg+xml,${svg}`;
    confirmation.querySelector("code").textContent = pending.secret;
    add.hidden = true;
    confirmation.hidden = false;
    confirmation.elements.code.focus();
  },

  async confirm(form) {
    const { recovery_codes } = await call("POST", `${PATH}/${pending.id}/confirm`, textOf(form));
    clear();
    show(recovery_codes);
  },

  async passkey(form) {
    const created = await createPasskey(await call("POST", "users/me/passkeys/options"));
    const body = { ...created, ...nameIn(form) };
    const { recovery_codes } = await call("POST", "users/me/passkeys", body);
    clear();
    show(recovery_codes);
  },

  async codes() {
    show((await call("POST", "users/me/recovery-codes")).recovery_codes);
  },
};

export async function showFactors() {
  add.querySelector("[value=passkey]").hidden = !hasPasskeys;
  newCodes.querySelector("button").hidden = !navigator.clipboard; // only in secure contexts
  clear();
  dialog.showModal();
  await attempt(list, draw);
}

dialog.addEventListener("submit", (event) => {
  const action = ACTIONS[event.submitter.value];
  if (!action) return; // it closes the dialog
  event.preventDefault();
  attempt(event.target, async () => {
    await action(event.target);
    await draw();
  });
});

dialog.addEventListener("close", clear);

newCodes.querySelector("button").addEventListener("click", () => {
  attempt(newCodes, async () => {
    await navigator.clipboard.writeText(newCodes.querySelector("pre").textContent);
    say("Copied.", "news");
  });
});

async function draw() {
  const { items, recovery_codes_left } = await call("GET", PATH);
  list.replaceChildren(...items.map(drawFactor));
  recovery.hidden = items.length === 0;
  recovery.querySelector("span").textContent = `Recovery codes left: ${recovery_codes_left}`;
}

function drawFactor({ id, type, name, created_at, last_used_at }) {
  const item = row.content.cloneNode(true);
  const form = item.querySelector("form");
  const used = last_used_at ? `last used ${dayOf(last_used_at)}` : "not used yet";
  form.dataset.id = id;
  form.querySelector("span").textContent = `${TYPES[type]}, added ${dayOf(created_at)}, ${used}`;
  form.elements.name.defaultValue = name;
  for (const button of form.querySelectorAll("button")) {
    button.setAttribute("aria-label", `${button.textContent} ${name}`);
  }
  return item;
}

const dayOf = (time) => new Date(time).toLocaleDateString("en", { dateStyle: "medium" });

// Without a name, the service chooses one.
function nameIn(form) {
  const { name } = textOf(form);
  return name ? { name } : {};
}

function show(codes) {
  if (!codes) return; // it was not the first factor
  newCodes.querySelector("pre").textContent = codes.join("\n");
  newCodes.hidden = false;
  newCodes.querySelector("h3").focus();
}

// Keeps no secret longer than it is shown.
function clear() {
  pending = null;
  for (const form of [add, confirmation]) form.reset();
  confirmation.querySelector("img").removeAttribute("src");
  confirmation.querySelector("code").textContent = "";
  newCodes.querySelector("pre").textContent = "";
  confirmation.hidden = newCodes.hidden = true;
  add.hidden = false;
}
