"""Errors of second factors."""

from app.core.errors import ConflictError, NotFoundError


class TotpEnabledError(ConflictError):
    code = "totp_enabled"
    detail = "This account already has an authenticator app. Remove it first."


class MfaRequiredByRoleError(ConflictError):
    code = "mfa_required_by_role"
    detail = "The role of this account needs a second factor, so its only one cannot be removed."


class TotpNotPendingError(NotFoundError):
    code = "totp_not_pending"
    detail = "No authenticator app waits for its first code, or it has waited for too long. Start again."


class TotpNotFoundError(NotFoundError):
    code = "totp_not_found"
    detail = "This account has no authenticator app."
