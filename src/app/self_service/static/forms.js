// Forms: one request at a time, and each error beside its field.

import { Cancelled, Problem } from "./api.js";

/** Runs `work` with the values of the form when it is sent. An error of `work` is shown in the form. */
export function onSubmit(form, work) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    run(form, () => work(Object.fromEntries(new FormData(form))));
  });
}

/** Runs `work` when the button is pressed. An error is shown in the message of `area`. */
export function onPress(button, area, work) {
  button.addEventListener("click", () => run(area, work, button));
}

async function run(area, work, button = area.querySelector("button:not([type])")) {
  // A disabled button would lose the focus, so the button only looks and sounds disabled.
  if (area.ariaBusy === "true") return;
  area.ariaBusy = "true";
  button.ariaDisabled = "true";
  clear(area);
  try {
    await work();
  } catch (error) {
    if (!(error instanceof Cancelled)) show(area, error);
    if (!(error instanceof Cancelled || error instanceof Problem)) console.error(error);
  }
  area.ariaBusy = "false";
  button.ariaDisabled = null;
}

/** Removes all errors and messages. */
export function clear(area) {
  for (const message of area.querySelectorAll(".message")) message.textContent = "";
  for (const text of area.querySelectorAll(".error")) text.remove();
  for (const field of area.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    describe(field, field.dataset.hint);
  }
}

/** Shows an error: beside the fields that it is about, or as the message of the area. */
function show(area, error) {
  const left = [];
  for (const one of error.errors?.length ? error.errors : [{ code: error.code, detail: error.message }]) {
    const field = fieldOf(area, one);
    if (field) mark(field, one.detail);
    else left.push(one.detail);
  }
  if (left.length) say(area, left.join(" "), "alert");
  area.querySelector("[aria-invalid]")?.focus();
}

function fieldOf(area, { pointer, code }) {
  const name = pointer?.split("/").at(-1);
  return [...area.querySelectorAll("input:enabled")].find(
    (field) => field.name === name || field.dataset.codes?.split(" ").includes(code),
  );
}

function mark(field, detail) {
  field.dataset.hint ??= field.getAttribute("aria-describedby") ?? "";
  const text = document.createElement("p");
  text.className = "error";
  text.id = `${field.id}-error`;
  text.textContent = detail;
  field.after(text);
  field.setAttribute("aria-invalid", "true");
  describe(field, `${text.id} ${field.dataset.hint}`.trim());
}

function describe(field, ids) {
  if (ids) field.setAttribute("aria-describedby", ids);
  else field.removeAttribute("aria-describedby");
}

/** Shows a text in the message of the area with this role: `status` for good news, `alert` for errors. */
export function say(area, text, role = "status") {
  area.querySelector(`.message[role=${role}]`).textContent = text;
}

/** Shows an element and moves the focus to its heading, or to what `selector` finds. */
export function reveal(element, selector = "[tabindex='-1'], h1, h2, h3") {
  element.hidden = false;
  element.querySelector(selector).focus();
}
