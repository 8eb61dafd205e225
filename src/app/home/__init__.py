"""The page at `/`, and pages for development: the mails that were sent."""
