"""Reads the mails that `FileTransport` has written."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path


@dataclass(frozen=True)
class StoredMail:
    """A mail in the directory. `name` is the name of its file without the suffix."""

    name: str
    to: str
    subject: str
    date: datetime
    text: str
    html: str


def newest(directory: Path, count: int) -> list[StoredMail]:
    """Return the last mails, the newest first."""
    return [_read(path) for path in sorted(_files(directory), reverse=True)[:count]]


def find(directory: Path, name: str) -> StoredMail | None:
    """Return the mail of this name. The name is only compared, and never becomes a part of a path."""
    return next((_read(path) for path in _files(directory) if path.stem == name), None)


def _files(directory: Path) -> Iterator[Path]:
    # A hidden file is still being written.
    return (path for path in directory.glob("*.eml") if not path.name.startswith("."))


def _read(path: Path) -> StoredMail:
    mail: EmailMessage = message_from_bytes(path.read_bytes(), policy=default)
    return StoredMail(
        name=path.stem,
        to=mail["To"],
        subject=mail["Subject"],
        date=mail["Date"].datetime,
        text=_content(mail, "plain"),
        html=_content(mail, "html"),
    )


def _content(mail: EmailMessage, kind: str) -> str:
    part = mail.get_body((kind,))
    return part.get_content() if part else ""
