"""Error of mailed links."""

from app.core.errors import MalformedRequestError


class InvalidLinkError(MalformedRequestError):
    """The secret of a link is wrong, expired, used or replaced. The error is the same for each, so it reveals nothing."""

    problem = "invalid-token"
    code = "invalid_token"
    detail = "This link is not valid any more. Request a new one."
