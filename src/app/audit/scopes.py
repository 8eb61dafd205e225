"""The scope of the audit log."""

SCOPES = {"audit:read": "Read the audit log"}
