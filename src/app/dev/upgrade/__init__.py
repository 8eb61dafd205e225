"""`make upgrade`: merges a newer Bedplate into a clone."""
