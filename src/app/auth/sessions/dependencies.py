"""Where the refresh token of a request travels."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Response
from pydantic import SecretStr

from app.auth.dependencies import AuthRequest
from app.auth.errors import InvalidRequestError, TokenTransportError
from app.auth.schemas import TokenPair
from app.auth.settings import AuthSettings
from app.core.http.browsers.cookies import (
    AmbiguousCookieError,
    clear_host_cookie,
    host_cookie,
    refuse_foreign_page,
    set_host_cookie,
)
from app.core.http.browsers.cors import OriginRefusedError
from app.core.http.problems import raises
from app.core.schemas.fields import Plain

# The name of the cookie, after the prefix `__Host-`.
COOKIE = "refresh"


@dataclass(frozen=True, slots=True)
class TokenTransport:
    """How the refresh token of a request travels: in bodies, or in a cookie that no script can read."""

    is_cookie: bool = False
    cookie: str | None = None

    def refresh_token(self, in_body: SecretStr | None) -> str | None:
        """Return the token that the client sent. Raises `InvalidRequestError` for a token in the body beside the header."""
        if not self.is_cookie:
            return in_body.get_secret_value() if in_body else None
        if in_body:
            raise InvalidRequestError
        return self.cookie

    def sent[Pair: TokenPair](self, response: Response, pair: Pair) -> Pair:
        """Move the refresh token from the body of the response to its cookie, if the client asked for that."""
        if self.is_cookie and pair.refresh_token:
            response.headers.update(set_host_cookie(COOKIE, pair.refresh_token, pair.refresh_expires_in))
            return pair.model_copy(update={"refresh_token": None})
        return pair

    @property
    def clearing(self) -> dict[str, str]:
        """The header that deletes the cookie, if the client uses it."""
        return clear_host_cookie(COOKIE) if self.is_cookie else {}


@raises(TokenTransportError, OriginRefusedError, AmbiguousCookieError)
async def get_token_transport(
    request: AuthRequest,
    token_transport: Annotated[
        Annotated[str, Plain] | None,
        Header(
            description="`cookie`: the refresh token is in a cookie, and not in bodies. Only for pages of this site.",
            json_schema_extra={"enum": ["cookie"]},
        ),
    ] = None,
) -> TokenTransport:
    """Return how the refresh token of this request travels.

    No form can send the header, and a script of another origin needs the permission of a preflight. So the header is what protects
    the cookie from requests that other sites forge; the checks of the page's origin are the second line.
    """
    given = request.headers.getlist("token-transport")
    if token_transport is None:
        return TokenTransport()
    is_on = request.state["settings"].of(AuthSettings).cookie_transport
    if not is_on or given != ["cookie"]:
        raise TokenTransportError(is_on=is_on)
    refuse_foreign_page(request.headers, request.state["settings"].trusted_origins)
    return TokenTransport(is_cookie=True, cookie=host_cookie(request.headers, COOKIE))


type TokenTransportDep = Annotated[TokenTransport, Depends(get_token_transport)]
