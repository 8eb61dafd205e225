"""Where a request came from, as much of it as may be kept."""

import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from time import monotonic

_PREFIXES = {4: 24, 6: 48}
# More proxies than any request passes. Each costs 20 µs.
_MAX_HOPS = 32
# An IPv6 customer is given a /64 at least, and may take another address of it for every attempt.
_SUBSCRIBERS = {4: 32, 6: 64}
# Reading an address takes 20 µs, and the same client comes again and again.
_REMEMBERED = 4096
# Some proxies add the port: `192.0.2.1:1234`, `[2001:db8::1]:1234`.
_PORT = re.compile(r"^(?:([0-9.]+)|\[([0-9A-Fa-f:.]+)\])(?::[0-9]{1,5})?$")

# The warning about a proxy that is not trusted is repeated at most this often.
_WARNING_PAUSE = 3600.0

type Network = IPv4Network | IPv6Network

log = logging.getLogger(__name__)


class ClientAddresses:
    """Finds the address of the client behind a request, and warns about a proxy that the settings do not name."""

    def __init__(self, trusted_proxies: Sequence[Network]) -> None:
        self._trusted = trusted_proxies
        self._warned_at = float("-inf")

    def find(self, peer: str | None, *, x_forwarded_for: str, forwarded: str | None) -> str | None:
        """Give the client's address: the peer's, or the one that a trusted proxy vouches for.

        `Forwarded` is never read. It only shows, as the other header does, that there is a proxy.
        """
        if (x_forwarded_for or forwarded) and not _is_within(_parsed(peer), self._trusted):
            self._warn(peer)
        return client_address(peer, x_forwarded_for, self._trusted)

    def _warn(self, peer: str | None) -> None:
        now = monotonic()
        if now - self._warned_at < _WARNING_PAUSE:
            return
        self._warned_at = now
        log.warning(
            "forwarded headers from %s are ignored: APP_SERVER__TRUSTED_PROXIES does not name it. If it is a proxy of yours, add "
            "it; until then all of its clients are limited as one",
            peer or "an unknown address",
        )


def client_address(peer: str | None, forwarded_for: str, trusted: Sequence[Network]) -> str | None:
    """Give the address of the client itself: the last in `X-Forwarded-For` that is not a proxy we trust.

    A header from any other client is ignored: a client that can write it could choose a new address for every attempt.
    """
    address = _parsed(peer)
    for hop in reversed(forwarded_for.rsplit(",", _MAX_HOPS)[-_MAX_HOPS:] if forwarded_for else []):
        if not _is_within(address, trusted):
            break
        claimed = _parsed(_PORT.sub(r"\1\2", hop.strip()))
        if claimed is None:
            # What stands left of something unreadable, nobody we trust has vouched for.
            break
        address = claimed
    return None if address is None else str(address)


def _is_within(address: IPv4Address | IPv6Address | None, networks: Sequence[Network]) -> bool:
    return address is not None and any(address in network for network in networks)


@lru_cache(_REMEMBERED)
def _parsed(text: str | None) -> IPv4Address | IPv6Address | None:
    try:
        # A zone names an interface of the machine that wrote it, and nothing here.
        parsed = ip_address((text or "").partition("%")[0])
    except ValueError:
        return None
    # An IPv4 client of a socket that speaks both is shown as an IPv6 address.
    return (parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None) or parsed


@lru_cache(_REMEMBERED)
def ip_prefix(address: str | None) -> Network | None:
    """Shorten an address to the network it is in: enough to recognise a place, too little to follow a person."""
    return _network(address, _PREFIXES)


def subscriber(address: str | None) -> str:
    """Name whom an address belongs to, for counting: the address itself in IPv4, its network in IPv6."""
    return str(_network(address, _SUBSCRIBERS))


def _network(address: str | None, prefixes: dict[int, int]) -> Network | None:
    parsed = _parsed(address)
    return None if parsed is None else ip_network((parsed, prefixes[parsed.version]), strict=False)
