"""The listening socket, and the error texts if it cannot be opened."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.listening import PortInUseError, listen


@pytest.fixture
def used_port() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port: int = holder.getsockname()[1]
        yield port


def test_the_error_names_the_process_that_uses_the_port(used_port: int) -> None:
    name = Path("/proc/self/comm").read_text().strip()

    with pytest.raises(PortInUseError) as refused:
        listen("127.0.0.1", used_port)

    assert str(refused.value) == (
        f"port {used_port} is in use by {name} (pid {os.getpid()}); "
        f"set PORT to another port, for example PORT={used_port + 1}"
    )


def test_the_error_names_a_process_that_uses_the_port_with_ipv6() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as holder:
        port = holder.getsockname()[1]

        with pytest.raises(PortInUseError, match=rf"port {port} is in use by .* \(pid {os.getpid()}\)"):
            listen("0.0.0.0", port)  # noqa: S104  # No request is served.


def test_the_error_names_no_process_if_none_is_found() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]

        with pytest.raises(PortInUseError) as refused:
            listen("127.0.0.1", port)

    assert str(refused.value) == f"port {port} is in use; set PORT to another port, for example PORT={port + 1}"


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(PortInUseError) as refused:
        listen("192.0.2.1", 8000)

    assert str(refused.value) == "cannot listen on 192.0.2.1:8000: Cannot assign requested address"


def test_an_invalid_host_name_is_an_error() -> None:
    with pytest.raises(PortInUseError) as refused:
        listen("a..b", 8000)

    assert str(refused.value) == "cannot listen on a..b:8000: invalid host name"


def test_an_unknown_host_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)

    with pytest.raises(PortInUseError) as refused:
        listen("unknown", 8000)

    assert str(refused.value) == "cannot listen on unknown:8000: Name or service not known"


def test_port_zero_selects_a_free_port() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        assert listener.getsockname()[1] > 0


def test_a_port_can_be_used_again_at_once() -> None:
    first = listen("127.0.0.1", 0)
    port = first.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)):
        first.accept()[0].close()
    first.close()

    listen("127.0.0.1", port).close()
