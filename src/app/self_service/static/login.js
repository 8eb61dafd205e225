// Logs in, with a second leg where the account has a second factor.

import { Problem, ask, keep, left, nextPage, onNews, refresh, tell } from "./api.js";
import { clear, onPress, onSubmit, reveal, say } from "./forms.js";
import { proofOf, useMethod } from "./methods.js";

const first = document.getElementById("first");
const second = document.getElementById("second");
const status = document.getElementById("status");
const resend = document.getElementById("resend");

// The person may have logged in before. Without an answer, the form says what is wrong when it is sent.
const earlier = refresh().catch(() => false);

let challenge = null;

onSubmit(first, async (values) => {
  status.textContent = "";
  resend.hidden = true;
  try {
    await enter("auth/token", { form: { grant_type: "password", ...values } });
  } catch (error) {
    if (error.code === "mfa_required") askForCode(error.document);
    else {
      resend.hidden = error.code !== "email_not_verified";
      throw error;
    }
  }
});

onSubmit(second, async (values) => {
  const begun = challenge;
  try {
    await enter("auth/mfa", { json: { mfa_token: begun.token, ...proofOf(values) } });
  } catch (error) {
    begun.failures += error.status === 400;
    // The server takes no more guesses for this login.
    if (begun.failures >= 5) startAgain("There were too many wrong codes. Log in again.");
    throw error;
  }
});

async function enter(path, options) {
  // Its response deletes the cookie if that login has ended, so it must not come after the new cookie.
  await earlier;
  keep(await ask(path, { ...options, withCookie: true }));
  // Without TLS, some browsers do not keep the cookie.
  if (location.protocol === "http:" && !(await refresh())) {
    throw new Problem(0, { detail: "Your browser did not keep the cookie of this login. Open this page over HTTPS." });
  }
  tell("logged in");
  await left(nextPage());
}

function askForCode({ mfa_token: token, expires_in: seconds, methods }) {
  challenge = { token, failures: 0 };
  first.hidden = true;
  first.reset();
  const known = ["code", "recovery_code"].filter((method) => methods.includes(method === "code" ? "totp" : method));
  useMethod(second, known[0], known);
  reveal(second, "[data-method] input:enabled");
  setTimeout(() => {
    if (challenge?.token === token) startAgain("This took too long. Log in again.");
  }, seconds * 1000);
}

function startAgain(text) {
  challenge = null;
  clear(second);
  second.reset();
  second.hidden = true;
  reveal(first, "input");
  say(first, text, "alert");
}

document.getElementById("again").addEventListener("click", () => startAgain(""));
onPress(resend.querySelector("button"), first, async () => {
  const { detail } = await ask("auth/verify-email/resend", { json: { email: first.elements.username.value } });
  resend.hidden = true;
  first.elements.username.focus();
  status.textContent = detail;
});

onNews("logged in", () => left(nextPage()));
if (await earlier) await left(nextPage());
