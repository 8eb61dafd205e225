"""Checks of passwords against a sorted file of digests."""

import errno
import hashlib
import os
import re
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import ConfigurationError, FieldError, InvalidInputError
from app.core.security.breaches import check_breached, refuse_breached
from tests.core.scrape import counted_so_far

BREACHED = [f"a breached passphrase {number}" for number in range(100)]


def digest(password: str) -> str:
    return hashlib.sha1(password.encode(), usedforsecurity=False).hexdigest().upper()


def in_order(passwords: Iterable[str]) -> list[str]:
    return sorted(passwords, key=digest)


def write(file: Path, passwords: Iterable[str], *, ending: str = "\r\n", last: str = "\r\n") -> Path:
    lines = [f"{digest(password)}:{1 + len(password) ** 3}" for password in in_order(passwords)]
    file.write_bytes((ending.join(lines) + last).encode())
    return file


def is_refused(password: str, file: Path) -> bool:
    try:
        refuse_breached(password, file, pointer="#/password")
    except InvalidInputError:
        return True
    return False


@contextmanager
def without_free_files() -> Iterator[None]:
    """Leave this process without a free file descriptor until the block ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def bytes_read() -> int:
    """Return the number of bytes that this process has read so far, from all sources."""
    return int(Path("/proc/self/io").read_text().split()[1])


def lookups(outcome: str) -> float:
    return counted_so_far("breached_password_lookups_total", outcome=outcome)


@pytest.mark.parametrize(("ending", "last"), [("\r\n", "\r\n"), ("\r\n", ""), ("\n", "\n"), ("\n", "")])
@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_exactly_the_passwords_of_the_file_are_rejected(tmp_path: Path, ending: str, last: str, count: int) -> None:
    file = write(tmp_path / "breached.txt", BREACHED[:count], ending=ending, last=last)

    check_breached(file)
    assert all(is_refused(password, file) for password in BREACHED[:count])
    assert not any(
        is_refused(password, file) for password in [*BREACHED[count:], "", "another", "a breached passphrase"]
    )


@given(st.sets(st.text(max_size=8), min_size=1, max_size=40), st.text(max_size=8))
def test_a_password_is_rejected_only_if_the_file_contains_it(
    tmp_path_factory: pytest.TempPathFactory, breached: set[str], password: str
) -> None:
    file = write(tmp_path_factory.getbasetemp() / "breached.txt", breached)

    assert is_refused(password, file) == (password in breached)


def test_a_file_of_digests_without_counts_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "breached.txt"
    file.write_text("".join(f"{digest(password)}\n" for password in in_order(BREACHED)))

    check_breached(file)
    before = lookups("found")
    assert all(is_refused(password, file) for password in BREACHED)
    assert lookups("found") == before + len(BREACHED)


def test_a_check_reads_a_small_part_of_a_large_file(tmp_path: Path) -> None:
    file = write(tmp_path / "breached.txt", [f"password {number}" for number in range(20_000)])

    before = bytes_read()
    assert is_refused("password 17", file)
    assert not is_refused("another", file)

    assert bytes_read() - before < file.stat().st_size / 100


def test_the_error_names_the_field_and_does_not_contain_the_password(tmp_path: Path) -> None:
    file = write(tmp_path / "breached.txt", ["CANARY"])

    with pytest.raises(InvalidInputError) as refused:
        refuse_breached("CANARY", file, pointer="#/new_password")

    assert refused.value.errors == (
        FieldError(
            "#/new_password",
            "password_too_common",
            "This password appears in known data breaches. Choose another one.",
        ),
    )


@pytest.mark.parametrize(
    "content", [None, b"This line has another format, and it is longer than sixty-four bytes.\n" * 9]
)
def test_an_unreadable_file_rejects_no_password_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    file = tmp_path / "breached.txt"
    if content:
        file.write_bytes(content)

    before = lookups("failed")
    assert not is_refused("CANARY", file)
    assert lookups("failed") == before + 1
    (record,) = caplog.records
    assert record.message == "breached passwords cannot be read"
    assert "CANARY" not in str(vars(record))
    assert digest("CANARY") not in str(vars(record))


def test_a_password_is_not_accepted_unchecked_without_a_free_file_descriptor(tmp_path: Path) -> None:
    file = write(tmp_path / "breached.txt", BREACHED)

    with without_free_files(), pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        refuse_breached(BREACHED[0], file, pointer="#/password")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param("", "invalid line at byte 0; expected a SHA-1 digest", id="empty file"),
        pytest.param("password\nletmein\n", "invalid line at byte 0; expected a SHA-1 digest", id="passwords"),
        pytest.param(f"{digest('x').lower()}:3\n", "invalid line at byte 0; expected a SHA-1 digest", id="lower case"),
        pytest.param(f"{'A' * 32}:3\n", "invalid line at byte 0; expected a SHA-1 digest", id="NTLM"),
        pytest.param(f"{digest('x')}:3\n\n", "invalid line at byte 43; expected a SHA-1 digest", id="empty line"),
        pytest.param(f"{digest('x')}:3\n{digest('y')[:30]}", "expected a SHA-1 digest", id="incomplete line"),
        pytest.param(
            "".join(f"{digest(word)}:9\n" for word in reversed(in_order(BREACHED))),
            "the file is not sorted by digest; compare the lines at bytes 0 and 43",
            id="descending",
        ),
        pytest.param("".join(f"{digest(word)}:9\n" for word in BREACHED), "not sorted by digest", id="not sorted"),
    ],
)
def test_the_check_at_the_start_names_what_is_wrong_with_a_file(tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "breached.txt"
    file.write_text(content)

    with pytest.raises(
        ConfigurationError, match=f"^APP_AUTH__BREACHED_PASSWORDS_FILE: {re.escape(str(file))}: .*{reason}"
    ):
        check_breached(file)


def test_the_check_at_the_start_rejects_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"missing.txt: No such file or directory$"):
        check_breached(tmp_path / "missing.txt")
    with pytest.raises(ConfigurationError, match=r"Is a directory$"):
        check_breached(tmp_path)
