// Calls the API. The access token is in the memory of the page, and the refresh token in a cookie that no script can read.

const API = new URL("../../api/v1/", import.meta.url);
const PAGES = new URL("..", import.meta.url);

let accessToken = null;
let refreshing = null;
// The id of the account that the page shows.
let shown = null;
let confirmOwner = null;

// Tells the other tabs about logins and logouts.
const tabs = new BroadcastChannel(`account ${API.pathname}`);

/** A request that failed: with a problem document (RFC 9457), with another body, or without a response. */
export class Problem extends Error {
  constructor(status, document = {}) {
    super(document.detail ?? "The service cannot be reached. Try again.");
    this.status = status;
    this.code = document.code;
    this.errors = document.errors ?? [];
    this.document = document;
  }
}

/** The person has closed the dialog that asks who it is. */
export class Cancelled extends Error {}

async function send(path, { method = "GET", json, form, withCookie = false, isAnonymous = false } = {}) {
  const headers = { Accept: "application/json" };
  if (withCookie) headers["Token-Transport"] = "cookie";
  if (accessToken && !isAnonymous) headers.Authorization = `Bearer ${accessToken}`;
  if (json) headers["Content-Type"] = "application/json";
  const body = json ? JSON.stringify(json) : form && new URLSearchParams(form);
  const [response, text] = await exchange(new URL(path, API), { method, headers, body });
  if (!response.ok) throw new Problem(response.status, parsed(text) ?? {});
  return parsed(text);
}

async function exchange(url, options) {
  try {
    const response = await fetch(url, options);
    return [response, await response.text()];
  } catch {
    throw new Problem(0);
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Sends a request that needs no login. */
export function ask(path, options) {
  return send(path, { method: "POST", isAnonymous: true, ...options });
}

/** Keeps the access token of an answer, and returns the answer. The refresh token is in the cookie. */
export function keep(answer) {
  accessToken = answer.access_token;
  return answer;
}

/** Gets an access token with the cookie, or returns false if there is no login session. Calls share one request. */
export function refresh() {
  refreshing ??= refreshOnce().finally(() => {
    refreshing = null;
  });
  return refreshing;
}

async function refreshOnce() {
  try {
    keep(await ask("auth/token", { form: { grant_type: "refresh_token" }, withCookie: true }));
  } catch (error) {
    if (["invalid_grant", "invalid_request"].includes(error.code)) return false;
    throw error;
  }
  // Another tab may have logged in to another account. This page must not act on it.
  if (shown && (await send("users/me")).id !== shown) await left(location.href);
  return true;
}

/** Sends a request of the logged-in person. Without a login session, the browser goes to the login page. */
export async function call(path, options) {
  let isFresh = false;
  for (;;) {
    if (!accessToken) {
      isFresh = true;
      if (!(await refresh())) await left(loginPage());
    }
    try {
      return await send(path, options);
    } catch (error) {
      if (error.status !== 401) throw error;
      if (error.code === "insufficient_user_authentication") await confirmOwner();
      else if (isFresh) await left(loginPage());
      else accessToken = null;
    }
  }
}

/** Sets the function that asks who it is when an operation needs a recent login. */
export function onStepUp(ask) {
  confirmOwner = ask;
}

/** Reads the account, and remembers that the page shows it. */
export async function readAccount() {
  const account = await call("users/me");
  shown = account.id;
  return account;
}

export async function logOut() {
  await ask("auth/revoke", { withCookie: true });
  tell("logged out");
}

export function tell(news) {
  tabs.postMessage(news);
}

export function onNews(news, act) {
  tabs.addEventListener("message", (event) => {
    if (event.data === news) act();
  });
}

export function loginPage() {
  return new URL(`login?next=${encodeURIComponent(location.pathname)}`, PAGES).href;
}

/** Goes to another page, and never returns: nothing more must happen on this one. */
export function left(url) {
  accessToken = null;
  if (url === location.href) location.reload();
  else location.replace(url);
  return new Promise(() => {});
}

/** Returns the page to show after the login: a path of this origin, or the security page. */
export function nextPage(search = location.search) {
  const fallback = new URL("security", PAGES).href;
  const path = new URLSearchParams(search).get("next") ?? "";
  if (!/^\/(?![/\\])[\x21-\x5b\x5d-\x7e]*$/.test(path)) return fallback;
  const url = new URL(path, location.origin);
  return url.origin === location.origin ? url.href : fallback;
}
