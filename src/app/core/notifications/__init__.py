"""PostgreSQL notifications: messages from the transactions of all processes."""
