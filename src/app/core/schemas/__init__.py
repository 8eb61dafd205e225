"""Types of fields that several features use."""
