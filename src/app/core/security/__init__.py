"""Passwords, keys and rate limits."""
