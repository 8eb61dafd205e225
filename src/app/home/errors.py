"""Errors of the pages for development."""

from app.core.errors import ForbiddenError, NotFoundError


class MailNotFoundError(NotFoundError):
    code = "mail_not_found"
    detail = "There is no such mail. Open the list of mails again."


class ForeignHostError(ForbiddenError):
    """The request came by another host name, because a web page made its own name point to this machine, or from a script of a page."""

    code = "foreign_host"
    detail = (
        "Mails are shown only at an address of this machine, such as http://127.0.0.1, or at APP_SERVER__PUBLIC_URL, and not to "
        "scripts. Open the page in the browser."
    )
