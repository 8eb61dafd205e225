"""What the page at `/` leads on to."""

from app.home.links import Link

LINKS = (Link("account/security", "Your account", "Log in, change your password, end login sessions."),)
