"""Login sessions: how they begin, go on with refresh tokens, and end."""
