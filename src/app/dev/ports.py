"""TCP ports of this machine."""

import socket


def free_port() -> int:
    """A port that nobody has at this moment; somebody may take it in the next."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
