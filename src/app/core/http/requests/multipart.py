"""Streaming parser of forms with files (RFC 7578). Files are written to temporary files while they arrive.

It is stricter than browsers and libraries need: each difference between two parsers could hide a part from one of them.
"""

import asyncio
import errno
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Any, NoReturn

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, Headers, UploadFile

from app.core.errors import (
    AppError,
    FieldError,
    InvalidInputError,
    MalformedRequestError,
    UnavailableError,
    UnsupportedMediaTypeError,
)
from app.core.http.problems import pointer
from app.core.schemas import characters

_LINE_END = b"\r\n"
_MAX_FILE_NAME = 255
_MAX_HEADERS = 8
_MAX_HEADER_SIZE = 2048
# Smaller files stay in memory, because a temporary file and a thread cost more than they.
_MAX_IN_MEMORY = 65_536
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# `boundary` is a token or quoted, of at most 70 characters (RFC 2046, 5.1.1). No other parameter but the charset is accepted.
_BOUNDARY = re.compile(
    r"\s*(?:;\s*charset=\"?utf-8\"?\s*)?;\s*boundary=(?:([\w'+.-]{1,70})|\"([\w'()+,./:=? -]{0,69}[\w'()+,./:=?-])\")"
    r"\s*(?:;\s*charset=\"?utf-8\"?\s*)?",
    re.IGNORECASE | re.ASCII,
)
_DISPOSITION = re.compile(r"form-data((?:\s*;\s*(?:file)?name=\"(?:[^\"\\]|\\.)*+\")*+)\s*", re.IGNORECASE | re.DOTALL)
_PARAMETER = re.compile(r";\s*((?:file)?name)=\"((?:[^\"\\]|\\.)*+)\"", re.IGNORECASE | re.DOTALL)
_ESCAPE = re.compile(r"\\([\"\\])")


class MalformedFormError(MalformedRequestError):
    """The body is not a valid form with files."""

    code = "malformed_form"
    detail = "The body is not valid multipart/form-data."

    def __init__(self, place: str = "The body", problem: str = "is not valid multipart/form-data") -> None:
        self.detail = f"{place} {problem}."
        super().__init__()


class UnsupportedPartError(UnsupportedMediaTypeError):
    """A part of a form has an encoding or a media type that no form of this server has."""

    code = "unsupported_part"
    detail = "A part of the form has an unsupported encoding. Send texts in UTF-8 and files as they are."

    def __init__(self, number: int) -> None:
        self.detail = (
            f"Part {number} of the form has an unsupported encoding. Send texts in UTF-8 and files as they are."
        )
        super().__init__()


class StorageFullError(UnavailableError):
    """The directory of temporary files is full, so a file cannot be received."""

    code = "temporary_storage_full"
    detail = "This server has no space for the file at the moment. Try again later."


@dataclass(frozen=True, slots=True)
class Part:
    """What an operation declares about the parts of one name."""

    is_file: bool
    is_list: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one form. An operation changes them with `form_limits=`, an argument of FastAPI."""

    max_files: int = 20
    max_fields: int = 100
    # Maximum size of a field that is not a file, in bytes.
    max_part_size: int = 65_536


def boundary_of(parameters: str) -> bytes:
    """Return the boundary from the parameters of a content type: exactly one must be there."""
    match = _BOUNDARY.fullmatch(f";{parameters}")
    if match is None:
        raise MalformedFormError("The content type", "must have one boundary of at most 70 characters")
    return (match[1] or match[2]).encode()


async def read_form(
    stream: AsyncIterator[bytes], boundary: bytes, parts: Mapping[str, Part], limits: Limits, *, ignores_others: bool
) -> FormData:
    """Return the fields and files of a form. If it is refused, or the client disconnects, the files are closed."""
    form = _Form(boundary, parts, limits, ignores_others=ignores_others)
    try:
        async for chunk in stream:
            await form.feed(chunk)
        return await form.finish()
    except BaseException as error:
        await _in_thread(form.close)
        if refusal := _refusal(error):
            # The client may still be sending the rest.
            refusal.headers["Connection"] = "close"
            raise refusal from (None if refusal is error else error)
        raise


def _refusal(error: BaseException) -> AppError | None:
    if isinstance(error, FormParserError):
        return MalformedFormError()
    if isinstance(error, OSError) and error.errno in _FULL:
        return StorageFullError()
    return error if isinstance(error, AppError) else None


async def _in_thread(function: Callable[..., None], *arguments: Any) -> None:
    """Run a function in a thread. If the task is cancelled, wait for the function, because the files are closed next."""
    task = asyncio.ensure_future(run_in_threadpool(function, *arguments))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


class _Form:
    """A form while it arrives."""

    def __init__(self, boundary: bytes, parts: Mapping[str, Part], limits: Limits, *, ignores_others: bool) -> None:
        self._parts = parts
        self._limits = limits
        self._ignores_others = ignores_others
        self._items: list[tuple[str, str | UploadFile]] = []
        self._given: set[str] = set()
        self._number = self._files = self._delimiters = 0
        self._header = [bytearray(), bytearray()]
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._file: UploadFile | None = None
        self._text = bytearray()
        # What the current chunk adds to files that are on disk.
        self._writes: list[tuple[UploadFile, bytes]] = []
        self._delimiter = b"\r\n--" + boundary
        self._end = self._delimiter + b"--"
        self._tail = self._epilogue = b""
        self._has_ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda data, start, end: self._add_header(0, data[start:end]),
                "on_header_value": lambda data, start, end: self._add_header(1, data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": lambda data, start, end: self._add_data(data[start:end]),
                "on_part_end": self._end_part,
                "on_end": self._end_form,
            },
            max_header_count=_MAX_HEADERS,
            max_header_size=_MAX_HEADER_SIZE,
        )

    async def feed(self, chunk: bytes) -> None:
        # The parser needs a microsecond for each delimiter, also for one that is none because other text follows.
        self._delimiters += chunk.count(self._delimiter)
        if self._delimiters > self._limits.max_files + self._limits.max_fields + 1:
            self._refuse("", "too_many_parts", "The form has too many parts.")
        had_ended = self._has_ended
        self._parser.write(chunk)
        if had_ended:
            self._epilogue += chunk
        elif self._has_ended:
            self._epilogue = self._after_end(self._tail + chunk)
        if len(self._epilogue) > len(_LINE_END):
            raise MalformedFormError("The form", "has text after its last boundary")
        self._tail = (self._tail + chunk)[-len(self._end) :]
        if self._writes:
            await _in_thread(_write, self._writes)
            self._writes = []

    async def finish(self) -> FormData:
        if not self._has_ended or self._epilogue not in {b"", _LINE_END}:
            raise MalformedFormError("The form", "must end with its boundary")
        await _in_thread(self._rewind)
        return FormData(self._items)

    def _after_end(self, seen: bytes) -> bytes:
        """Return the text after the last boundary. The parser would ignore it, but another parser may find more parts there."""
        _, end, rest = seen.partition(self._end)
        return rest if end else seen.removeprefix(self._end.removeprefix(_LINE_END))

    def _rewind(self) -> None:
        for file in self._open_files():
            file.file.seek(0)

    def close(self) -> None:
        for file in self._open_files():
            file.file.close()

    def _open_files(self) -> list[UploadFile]:
        files = [item for _, item in self._items if isinstance(item, UploadFile)]
        return [*files, self._file] if self._file else files

    # Callbacks of the parser

    def _begin_part(self) -> None:
        self._number += 1
        self._headers = {}
        self._text = bytearray()

    def _add_header(self, part: int, data: bytes) -> None:
        self._header[part] += data

    def _end_header(self) -> None:
        name, value = (bytes(one) for one in self._header)
        self._header = [bytearray(), bytearray()]
        if self._headers.setdefault(name.lower(), value) is not value:
            raise self._malformed("has a header twice")

    def _end_headers(self) -> None:
        self._name, file_name = self._disposition()
        part = self._parts.get(self._name)
        if part is None and (file_name is not None or not self._ignores_others):
            self._refuse(self._name, "extra_forbidden", "This operation has no such field.")
        if self._name in self._given and not (part and part.is_list):
            self._refuse(self._name, "duplicate_parameter", "This may be given only once.")
        self._given.add(self._name)
        self._check_encoding(is_file=file_name is not None)
        self._file = self._open_file(file_name, part)

    def _disposition(self) -> tuple[str, str | None]:
        """Return the name of the part, and its file name if it is a file."""
        try:
            text = self._headers.get(b"content-disposition", b"").decode()
        except UnicodeDecodeError as error:
            raise self._malformed("has a name that is not UTF-8") from error
        match = _DISPOSITION.fullmatch(text)
        found = [(one[1].lower(), _ESCAPE.sub(r"\1", one[2])) for one in _PARAMETER.finditer(match[1])] if match else []
        names = dict(found)
        if not names.get("name") or len(names) < len(found):
            raise self._malformed('must have one header such as Content-Disposition: form-data; name="title"')
        return names["name"], names.get("filename")

    def _check_encoding(self, *, is_file: bool) -> None:
        encoding = self._headers.get(b"content-transfer-encoding", b"binary").lower()
        kind, _, parameters = self._headers.get(b"content-type", b"").lower().partition(b";")
        has_charset = b"charset" in parameters and parameters.strip().replace(b'"', b"") != b"charset=utf-8"
        is_text = not is_file and has_charset
        if encoding not in {b"7bit", b"8bit", b"binary"} or kind.strip().startswith(b"multipart/") or is_text:
            raise UnsupportedPartError(self._number)

    def _open_file(self, name: str | None, part: Part | None) -> UploadFile | None:
        if part and part.is_file != (name is not None):
            detail = "This must be a file: the part needs a filename." if part.is_file else "This must not be a file."
            self._refuse(self._name, "file_expected" if part.is_file else "file_unexpected", detail)
        if name is None:
            return None
        self._files += 1
        if self._files > self._limits.max_files:
            self._refuse(self._name, "too_many_files", f"There may be at most {self._limits.max_files} files.")
        if not _is_plain(name):
            detail = (
                f"A file name has 1 to {_MAX_FILE_NAME} bytes, and no path or invisible character. Rename the file."
            )
            self._refuse(self._name, "file_name", detail)
        headers = Headers(raw=list(self._headers.items()))
        file: Any = SpooledTemporaryFile(_MAX_IN_MEMORY)  # noqa: SIM115  # FastAPI closes it after the response.
        return UploadFile(file, size=0, filename=name, headers=headers)

    def _add_data(self, data: bytes) -> None:
        if self._file is None:
            self._text += data
            if len(self._text) > self._limits.max_part_size:
                detail = f"This may have at most {self._limits.max_part_size} bytes."
                self._refuse(self._name, "too_long", detail)
            return
        if not self._file.filename:
            self._refuse(self._name, "file_name", "The file has no name. Give it one.")
        self._file.size = (self._file.size or 0) + len(data)
        if self._file.size > _MAX_IN_MEMORY:
            self._writes.append((self._file, data))
        else:
            self._file.file.write(data)

    def _end_part(self) -> None:
        if self._file is not None:
            self._items.append((self._name, self._file))
            self._file = None
            return
        if len(self._items) - self._files >= self._limits.max_fields:
            self._refuse(self._name, "too_many_parts", f"There may be at most {self._limits.max_fields} fields.")
        try:
            self._items.append((self._name, self._text.decode()))
        except UnicodeDecodeError as error:
            raise self._malformed("is not UTF-8") from error

    def _end_form(self) -> None:
        self._has_ended = True

    def _malformed(self, problem: str) -> MalformedFormError:
        return MalformedFormError(f"Part {self._number} of the form", problem)

    def _refuse(self, name: str, code: str, detail: str) -> NoReturn:
        raise InvalidInputError(FieldError(pointer(name), code, detail))


def _is_plain(name: str) -> bool:
    """Return whether a file name is safe to show and to store. An empty one stands for an input of a page without a file."""
    return (
        len(name.encode()) <= _MAX_FILE_NAME
        and name not in {".", ".."}
        and not {"/", "\\"} & set(name)
        and characters.is_printable(name)
        and characters.is_visible(name)
    )


def _write(writes: list[tuple[UploadFile, bytes]]) -> None:
    for file, data in writes:
        file.file.write(data)
