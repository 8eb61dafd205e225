// Forms that take one of several proofs: a password, a code of the app, or a recovery code.

import { clear } from "./forms.js";

const OTHERS = {
  code: { method: "recovery_code", text: "Use a recovery code" },
  recovery_code: { method: "code", text: "Use a code of the app" },
};

/** Shows the field of a method, and the button for another one of `methods`. */
export function useMethod(form, method, methods) {
  clear(form);
  for (const part of form.querySelectorAll("[data-method]")) {
    const input = part.querySelector("input");
    part.hidden = input.disabled = part.dataset.method !== method;
    input.value = "";
  }
  const other = form.querySelector("[data-other]");
  const button = other.querySelector("button");
  other.hidden = !methods.includes(OTHERS[method]?.method);
  button.textContent = OTHERS[method]?.text ?? "";
  button.onclick = () => {
    useMethod(form, OTHERS[method].method, methods);
    form.querySelector("[data-method] input:enabled").focus();
  };
}

/** Returns the proof that the form has, as the API takes it: people write codes with spaces. */
export function proofOf({ password, code, recovery_code }) {
  if (password) return { password };
  return code ? { code: code.replaceAll(" ", "") } : { recovery_code };
}
