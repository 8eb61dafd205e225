"""Access tokens: how they are issued and verified, and whether one is still valid."""
