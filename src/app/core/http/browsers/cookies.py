"""Cookies that only pages of trusted origins can use, and only this host receives (RFC 6265bis, 4.1.3)."""

from collections.abc import Collection

from starlette.datastructures import Headers

from app.core.errors import MalformedRequestError
from app.core.http.browsers.cors import OriginRefusedError

# The browser sends the cookie to this host alone, over TLS alone, and no script can read it.
_ATTRIBUTES = "Path=/; Secure; HttpOnly; SameSite=Strict"
_OWN_SITE = frozenset({"same-origin", "same-site"})


class AmbiguousCookieError(MalformedRequestError):
    """The browser sent two cookies of one name, so one of them may be foreign."""

    code = "ambiguous_cookie"
    detail = "The request has two cookies of the same name. Delete the cookies of this site."


def refuse_foreign_page(headers: Headers, trusted: Collection[str]) -> None:
    """Raise `OriginRefusedError` unless a page of a trusted origin sent the request. Every browser sends `Origin` with a POST."""
    origins = headers.getlist("origin")
    sites = headers.getlist("sec-fetch-site")
    if len(origins) != 1 or origins[0] not in trusted or not _OWN_SITE.issuperset(sites):
        raise OriginRefusedError


def host_cookie(headers: Headers, name: str) -> str | None:
    """Return the value of the cookie `__Host-{name}`. Raises `AmbiguousCookieError` if there are two."""
    pairs = (pair.strip().partition("=") for header in headers.getlist("cookie") for pair in header.split(";"))
    values = [value for key, _, value in pairs if key == f"__Host-{name}"]
    if len(values) > 1:
        raise AmbiguousCookieError
    return values[0] if values else None


def set_host_cookie(name: str, value: str, max_age: int) -> dict[str, str]:
    """Return the header that sets the cookie `__Host-{name}` for this number of seconds. The value is plain ASCII."""
    return {"Set-Cookie": f"__Host-{name}={value}; Max-Age={max_age}; {_ATTRIBUTES}"}


def clear_host_cookie(name: str) -> dict[str, str]:
    """Return the header that deletes the cookie `__Host-{name}`."""
    return set_host_cookie(name, "", 0)
