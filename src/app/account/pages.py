"""The pages that mailed links lead to: plain, with a script and a style of their own, for services without a front end.

Opening one changes nothing: mail scanners open links. The secret is in the fragment, which the browser sends nowhere; the
script takes it out of the address and sends it on when the person presses the button.
"""

from fastapi import Response

from app.auth.dependencies import AuthRequest
from app.auth.settings import AuthSettings
from app.core.errors import NotFoundError
from app.core.http import routing
from app.core.http.access import public

router = routing.router(prefix="/account")

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{title}</title>
<link rel="stylesheet" href="page.css">
</head>
<body>
<main>
<h1>{title}</h1>
<form data-endpoint="{endpoint}" data-member="{member}">{field}<button>{button}</button></form>
<p role="status" hidden></p>
<noscript>This page needs JavaScript: it keeps the secret of your link out of every log.</noscript>
</main>
<script src="page.js"></script>
</body>
</html>
"""
# No maxlength: a browser would cut what is pasted, and say nothing.
_PASSWORD_FIELD = (
    '<label for="password">New password</label>'
    '<input id="password" type="password" autocomplete="new-password" required minlength="{min_length}">'
)
_PAGES = {
    "verify-email": ("Verify your address", "../api/v1/auth/verify-email", "", "", "Verify"),
    "confirm-email": ("Confirm your new address", "../api/v1/auth/email/confirm", "", "", "Confirm"),
    "set-password": (
        "Set your password",
        "../api/v1/auth/password/reset",
        "new_password",
        _PASSWORD_FIELD,
        "Set password",
    ),
}
_SCRIPT = """"use strict";
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
  say("This link is incomplete; copy all of it from the mail.");
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
      return;
    }
    const problem = await response.json();
    say((problem.errors || [problem]).map((error) => error.detail).join(" "));
  } catch {
    say("The service cannot be reached; try again.");
  }
  button.disabled = false;
});
"""
_STYLE = """body { font: 16px/1.5 system-ui, sans-serif; margin: 0; background: #f2f3f5; color: #1f2328; }
main { max-width: 26rem; margin: 15vh auto 0; padding: 2rem; background: #fff; border-radius: 8px; }
h1 { font-size: 1.25rem; margin: 0 0 1rem; }
label, input, button { display: block; width: 100%; box-sizing: border-box; font: inherit; }
input, button { padding: .6rem; margin: .25rem 0 1rem; border-radius: 6px; border: 1px solid #c9ced6; }
button { background: #1a56db; border-color: #1a56db; color: #fff; cursor: pointer; }
[hidden] { display: none; }
@media (prefers-color-scheme: dark) {
  body { background: #16181d; color: #e8eaed; }
  main { background: #22252c; }
}
"""


@router.get("/{name}", include_in_schema=False, openapi_extra=public)
async def read_page(request: AuthRequest, name: str) -> Response:
    """Show the page a mailed link leads to."""
    if name == "page.js":
        return Response(_SCRIPT, media_type="text/javascript")
    if name == "page.css":
        return Response(_STYLE, media_type="text/css")
    if name not in _PAGES:
        raise NotFoundError
    title, endpoint, member, field, button = _PAGES[name]
    field = field.format(min_length=request.state["settings"].of(AuthSettings).password_min_length)
    content = _PAGE.format(title=title, endpoint=endpoint, member=member, field=field, button=button)
    return Response(content, media_type="text/html", headers={"Content-Security-Policy": _POLICY})
