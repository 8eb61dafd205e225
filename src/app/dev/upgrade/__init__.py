"""`make upgrade`: merges a newer Bedplate into a clone.

These modules import only the standard library and each other, because `scripts/upgrade.py` takes them from the newer version and runs
them in a clone whose environment may be older.
"""
