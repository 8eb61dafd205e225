"""Writes responses: head and body in one packet if possible."""

from typing import Any, override

from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE, STATUS_LINE, RequestResponseCycle

# Response headers that change how the body is sent. uvicorn handles responses that have one.
_TRANSFER_HEADERS = frozenset({b"connection", b"transfer-encoding"})


class ResponseCycle(RequestResponseCycle):
    """One request and its response. Head and body of a response of known length leave in one write, which saves a packet."""

    _head = b""

    @override
    async def send(self, message: Any) -> None:
        if not self.response_started:
            self._head = self._format_head(message)
            if self._head:
                self.response_started = True
                self.waiting_for_100_continue = False
                return
        elif self._head:
            # uvicorn counts the head as the beginning of the body.
            self.expected_content_length += len(self._head)
            message = {**message, "body": self._head + message.get("body", b"")}
            self._head = b""
        await super().send(message)

    def _format_head(self, message: Any) -> bytes:
        """Return the head of a response of known length, or nothing if uvicorn has to write it."""
        headers = [*self.default_headers, *message.get("headers", ())]
        given = dict(headers)
        if (
            b"content-length" not in given
            or self.scope["method"] == "HEAD"
            or not given.keys().isdisjoint(_TRANSFER_HEADERS)
        ):
            return b""
        if HEADER_RE.search(b"".join(given)) or HEADER_VALUE_RE.search(b"".join([value for _, value in headers])):
            return b""
        self.expected_content_length = int(given[b"content-length"])
        self.chunked_encoding = False
        if not self.keep_alive:
            headers.append((b"connection", b"close"))
        return STATUS_LINE[message["status"]] + b"\r\n".join(map(b": ".join, headers)) + b"\r\n\r\n"
