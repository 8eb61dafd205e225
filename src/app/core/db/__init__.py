"""PostgreSQL: engines, sessions, retries, single reads, keyset pages."""
