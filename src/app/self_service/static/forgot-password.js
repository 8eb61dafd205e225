// Asks for a mail with a link to set a new password.

import { ask } from "./api.js";
import { onSubmit } from "./forms.js";

const form = document.querySelector("form");
const status = document.getElementById("status");

onSubmit(form, async (values) => {
  const { detail } = await ask("auth/password/forgot", { json: values });
  form.hidden = true;
  status.textContent = detail;
  status.focus();
});
