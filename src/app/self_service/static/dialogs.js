// Dialogs. `<dialog>` keeps the focus inside, closes with Escape, and gives the focus back.

import { Cancelled, call, keep, onStepUp } from "./api.js";
import { clear, onSubmit } from "./forms.js";
import { proofOf, useMethod } from "./methods.js";

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
  keep(await call("auth/reauthenticate", { method: "POST", json: proofOf(values), withCookie: true }));
});

onStepUp(async () => {
  const methods = await strongestMethods();
  useMethod(stepUp.querySelector("form"), methods[0], methods);
  await open(stepUp);
});

async function strongestMethods() {
  try {
    return (await call("users/me/mfa")).totp ? ["code", "recovery_code"] : ["password"];
  } catch (error) {
    // The service has no second factors.
    if (error.status === 404) return ["password"];
    throw error;
  }
}
