"""`python -m app`: the same as `app`."""

from app.cli import main

main()
