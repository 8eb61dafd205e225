"""What the page at `/` leads on to, besides what it knows itself."""

from typing import NamedTuple


class Link(NamedTuple):
    """A link of a feature's `home.py`. `path` is relative, such as `account/login`."""

    path: str
    title: str
    text: str
