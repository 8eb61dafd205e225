"""The scopes of the user operations."""

SCOPES = {"users:read": "Read every account", "users:write": "Create, change and delete accounts"}
