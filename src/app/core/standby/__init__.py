"""Reads from a standby, without losing sight of what is committed. See docs/decisions/0030-reads-from-a-standby.md."""
