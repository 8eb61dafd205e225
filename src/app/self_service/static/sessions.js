// Lists the login sessions, and ends them.

import { call } from "./api.js";
import { deviceName } from "./device.js";
import { onPress, say } from "./forms.js";
import { date } from "./texts.js";

const PAGE_SIZE = 20;

const section = document.getElementById("sessions");
const title = section.querySelector("h2");
const list = section.querySelector("ul");
const more = document.getElementById("more-sessions");
const others = document.getElementById("end-others");

let cursor = null;

/** Reads the list, and makes its buttons work. */
export async function startSessions() {
  onPress(more, section, async () => {
    const items = await readPage(`&cursor=${encodeURIComponent(cursor)}`);
    list.append(...items);
    refreshButtons();
    items[0]?.querySelector("button").focus();
  });
  onPress(others, section, async () => {
    await call("users/me/sessions", { method: "DELETE" });
    await readSessions();
    title.focus();
    say(section, "All other sessions have ended.");
  });
  await readSessions();
}

export async function readSessions() {
  list.replaceChildren(...(await readPage("")));
  refreshButtons();
}

async function readPage(following) {
  const page = await call(`users/me/sessions?limit=${PAGE_SIZE}${following}`);
  cursor = page.next_cursor;
  return page.items.map(itemOf);
}

function refreshButtons() {
  more.hidden = !cursor;
  others.hidden = !cursor && list.childElementCount < 2;
}

function itemOf(session) {
  const item = section.querySelector("template").content.firstElementChild.cloneNode(true);
  const device = deviceName(session.user_agent);
  const seen = date(session.last_seen_at);
  const network = session.ip_prefix ? ` from ${session.ip_prefix}` : "";
  item.querySelector(".device").textContent = device;
  item.querySelector(".badge").hidden = !session.is_current;
  item.querySelector("[data-used]").textContent = `Last used: ${seen}`;
  item.querySelector("[data-begun]").textContent = `Logged in: ${date(session.created_at)}${network}`;
  const button = item.querySelector("button");
  button.hidden = session.is_current;
  button.ariaLabel = `End ${device}, last used ${seen}`;
  onPress(button, section, () => end(item, session.id));
  return item;
}

async function end(item, id) {
  try {
    await call(`users/me/sessions/${id}`, { method: "DELETE" });
  } catch (error) {
    // It has ended since the list was read.
    if (error.status !== 404) throw error;
  }
  const next = item.nextElementSibling ?? item.previousElementSibling;
  item.remove();
  refreshButtons();
  (next?.querySelector("button:not([hidden])") ?? title).focus();
  say(section, "The session has ended.");
}
