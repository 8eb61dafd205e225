"""The list of the audit log, for administrators. `make remove NAME=audit-list` removes it; the log stays."""
