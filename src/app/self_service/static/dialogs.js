// Dialogs. `<dialog>` keeps the focus inside, closes with Escape, and gives the focus back.

import { Cancelled, call, keep, onStepUp } from "./api.js";
import { clear, onSubmit } from "./forms.js";

const ends = new WeakMap();

/** Prepares a dialog. `work` gets the values of its form; if it succeeds, the dialog closes. */
export function prepare(dialog, work) {
  const form = dialog.querySelector("form");
  onSubmit(form, async (values) => {
    await work(values);
    ends.get(dialog).resolve();
    dialog.close();
  });
  dialog.querySelector("[data-cancel]").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    ends.get(dialog).reject(new Cancelled());
    form.reset();
    clear(form);
  });
}

/** Shows a dialog. The promise is rejected with `Cancelled` if the dialog is closed without success. */
export function open(dialog) {
  return new Promise((resolve, reject) => {
    ends.set(dialog, { resolve, reject });
    dialog.showModal();
  });
}

const stepUp = document.getElementById("step-up");
prepare(stepUp, async (values) => {
  const json = values.code ? { code: values.code.replaceAll(" ", "") } : values;
  keep(await call("auth/reauthenticate", { method: "POST", json, withCookie: true }));
});

onStepUp(async () => {
  const method = await strongestMethod();
  for (const part of stepUp.querySelectorAll("[data-method]")) {
    part.hidden = part.querySelector("input").disabled = part.dataset.method !== method;
  }
  await open(stepUp);
});

async function strongestMethod() {
  try {
    return (await call("users/me/mfa")).totp ? "code" : "password";
  } catch (error) {
    if (error.status === 404) return "password";
    throw error;
  }
}
