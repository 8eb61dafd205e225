// The security page: each section is a module.

import { Problem, left, logOut, loginPage, onNews, readAccount } from "./api.js";
import { startClosing, startExport } from "./account.js";
import { startEmail, startPassword } from "./credentials.js";
import { onPress } from "./forms.js";
import { startSecondFactor } from "./second-factor.js";
import { startSessions } from "./sessions.js";

const page = document.getElementById("page");
const problem = document.getElementById("problem");

onPress(document.getElementById("log-out"), page, async () => {
  await logOut();
  await left(loginPage());
});
onNews("logged out", () => left(loginPage()));

try {
  const account = await readAccount();
  for (const element of document.querySelectorAll("[data-owner]")) {
    element[element.matches("input") ? "value" : "textContent"] = account.email;
  }
  await Promise.all([startSecondFactor(), startSessions(), startEmail()]);
  startPassword();
  startExport();
  startClosing(account);
  document.getElementById("content").hidden = false;
} catch (error) {
  problem.textContent = error.message;
  if (!(error instanceof Problem)) throw error;
}
page.removeAttribute("aria-busy");
