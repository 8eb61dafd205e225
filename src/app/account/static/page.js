"use strict";
const form = document.querySelector("form");
const status = document.querySelector("[role=status]");
const secret = new URLSearchParams(location.hash.slice(1)).get("token");
history.replaceState(null, "", location.pathname);
function say(text) {
  status.textContent = text;
  status.hidden = false;
}
if (!secret) {
  form.hidden = true;
  say("This link is incomplete. Copy the whole link from the mail.");
}
// Not every installation has a page to log in.
async function offerLogin() {
  if (!(await fetch("login", { method: "HEAD" })).ok) return;
  const link = document.createElement("a");
  link.href = "login";
  link.textContent = "Log in";
  status.after(link);
  link.focus();
}
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = { token: secret };
  if (form.dataset.member) body[form.dataset.member] = form.querySelector("input").value;
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    const response = await fetch(form.dataset.endpoint, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    if (response.ok) {
      form.hidden = true;
      say("Done. You can close this page and log in.");
      await offerLogin();
      return;
    }
    const problem = await response.json();
    say((problem.errors || [problem]).map((error) => error.detail).join(" "));
  } catch {
    say("The service cannot be reached. Try again.");
  }
  button.disabled = false;
});
