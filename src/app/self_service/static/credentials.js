// Changes the password and the address.

import { call } from "./api.js";
import { onSubmit, say } from "./forms.js";
import { readSessions } from "./sessions.js";

export function startPassword() {
  const form = document.querySelector("#password form");
  onSubmit(form, async ({ current_password, new_password }) => {
    await call("users/me/password", { method: "PUT", json: { current_password, new_password } });
    form.elements.current_password.value = form.elements.new_password.value = "";
    document.getElementById("password-title").focus();
    say(form, "Your password is changed. All other sessions have ended.");
    await readSessions();
  });
}

/** Shows the section if the service has this operation. */
export async function startEmail() {
  const section = document.getElementById("email");
  const form = section.querySelector("form");
  onSubmit(form, async ({ new_email, password }) => {
    const { detail } = await call("users/me/email", { method: "POST", json: { new_email, password } });
    form.reset();
    document.getElementById("email-title").focus();
    say(form, detail);
  });
  section.hidden = !(await isInstalled("users/me/email"));
}

async function isInstalled(path) {
  try {
    await call(path, { method: "OPTIONS" });
  } catch (error) {
    return error.status !== 404;
  }
  return true;
}
