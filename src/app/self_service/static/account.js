// Downloads what is stored about the account, and closes the account.

import { Problem, call, tell } from "./api.js";
import { open, prepare } from "./dialogs.js";
import { onPress, reveal, say } from "./forms.js";

export function startExport() {
  const section = document.getElementById("data");
  onPress(document.getElementById("export"), section, async () => {
    download("account.json", await call("users/me/export"));
    say(section, "The file is in your downloads.");
  });
}

function download(name, value) {
  const link = document.createElement("a");
  link.download = name;
  link.href = URL.createObjectURL(new Blob([JSON.stringify(value, null, 2)], { type: "application/json" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export function startClosing(account) {
  const dialog = document.getElementById("close-dialog");
  prepare(dialog, async ({ confirmed_email }) => {
    if (confirmed_email.trim().toLowerCase() !== account.email.toLowerCase()) {
      const detail = `This is not the address of the account. It is ${account.email}.`;
      throw new Problem(422, { errors: [{ pointer: "#/confirmed_email", detail }] });
    }
    await call("users/me", { method: "DELETE" });
    tell("logged out");
  });
  onPress(document.getElementById("close"), document.getElementById("closing"), async () => {
    await open(dialog);
    document.getElementById("page").hidden = true;
    reveal(document.getElementById("closed"));
  });
}
