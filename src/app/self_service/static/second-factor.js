// Sets up the second factor, shows its recovery codes, and removes it.

import { call, keep, left, loginPage } from "./api.js";
import { open, prepare } from "./dialogs.js";
import { onPress, onSubmit, say } from "./forms.js";
import { readSessions } from "./sessions.js";
import { date } from "./texts.js";

const MFA = "users/me/mfa";

const section = document.getElementById("second-factor");
const title = section.querySelector("h2");
const form = section.querySelector("form");
const codes = document.getElementById("codes");
const codesTitle = section.querySelector("[data-state=codes] h3");
const qr = document.getElementById("qr");
const secret = document.getElementById("secret");
const newCodes = document.getElementById("new-codes-dialog");
const removal = document.getElementById("remove-dialog");

/** Shows the section if the service has second factors. */
export async function startSecondFactor() {
  try {
    await readState();
  } catch (error) {
    if (error.status === 404) return;
    throw error;
  }
  section.hidden = false;
  onPress(document.getElementById("set-up"), section, setUp);
  onSubmit(form, turnOn);
  onPress(document.getElementById("stop-setup"), section, stop);
  onPress(document.getElementById("copy"), section, copy);
  document.getElementById("print").addEventListener("click", () => print());
  onPress(document.getElementById("saved"), section, stop);
  startChanges();
}

function startChanges() {
  prepare(newCodes, async () => showCodes(await call(`${MFA}/recovery-codes`, { method: "POST" })));
  prepare(removal, async () => {
    await call(`${MFA}/totp`, { method: "DELETE" });
    // The session has ended with the factor.
    await left(loginPage());
  });
  onPress(document.getElementById("new-codes"), section, async () => {
    await open(newCodes);
    codesTitle.focus();
  });
  onPress(document.getElementById("remove"), section, () => open(removal));
}

async function readState() {
  const state = await call(MFA);
  document.getElementById("factor-required").hidden = !state.is_required;
  if (state.totp) describe(state);
  become(state.totp ? "on" : "off");
}

function describe({ totp, recovery_codes_left: left, is_required: isRequired }) {
  const used = totp.last_used_at ? ` Last used: ${date(totp.last_used_at)}.` : "";
  document.getElementById("factor-since").textContent = `On since ${date(totp.created_at)}.${used}`;
  document.getElementById("codes-left").textContent = `Recovery codes left: ${left}.`;
  document.getElementById("remove").hidden = isRequired;
}

function become(state) {
  for (const part of section.querySelectorAll("[data-state]")) part.hidden = part.dataset.state !== state;
}

async function setUp() {
  const pending = await call(`${MFA}/totp`, { method: "POST" });
  qr.src = `data:image/svg+xml,${encodeURIComponent(pending.qr_svg)}`;
  secret.textContent = pending.secret.match(/.{1,4}/g).join(" ");
  become("pending");
  section.querySelector("[data-state=pending] h3").focus();
}

async function turnOn({ code }) {
  const json = { code: code.replaceAll(" ", "") };
  const confirmed = await call(`${MFA}/totp/confirm`, { method: "POST", json, withCookie: true });
  keep(confirmed);
  forget();
  showCodes(confirmed);
  codesTitle.focus();
  say(section, "The second factor is on. All other sessions have ended.");
  await readSessions();
}

async function stop() {
  forget();
  await readState();
  title.focus();
}

// Leaves no secret in the page.
function forget() {
  form.reset();
  qr.removeAttribute("src");
  secret.textContent = "";
  codes.replaceChildren();
}

function showCodes({ recovery_codes: all }) {
  const items = all.map((code) => {
    const item = document.createElement("li");
    item.textContent = code;
    return item;
  });
  codes.replaceChildren(...items);
  become("codes");
}

async function copy() {
  await navigator.clipboard.writeText([...codes.children].map((item) => item.textContent).join("\n"));
  say(section, "The codes are in the clipboard.");
}
