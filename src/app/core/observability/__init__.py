"""Logs, metrics, traces, and where they are shown."""
