"""Client addresses: which one a request comes from, and how much of it is stored."""

import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from time import monotonic

_STORED_PREFIX = {4: 24, 6: 48}
# Maximum number of entries that are read. Real requests pass through fewer proxies, and each entry costs 20 µs.
_MAX_HOPS = 32
# An IPv6 customer gets at least a /64, and can use a different address of it for every attempt.
_SUBSCRIBER_PREFIX = {4: 32, 6: 64}
# Parsing an address takes 20 µs, and most requests come from a client that was seen before.
_CACHE_SIZE = 4096
# Some proxies add the port: `192.0.2.1:1234`, `[2001:db8::1]:1234`.
_PORT = re.compile(r"^(?:([0-9.]+)|\[([0-9A-Fa-f:.]+)\])(?::[0-9]{1,5})?$")

# Minimum number of seconds between two warnings about an untrusted proxy.
_WARNING_INTERVAL = 3600.0

type Network = IPv4Network | IPv6Network

log = logging.getLogger(__name__)


class ClientAddresses:
    """Finds the client address of a request, and logs a warning about a proxy that is not in the settings."""

    def __init__(self, trusted_proxies: Sequence[Network]) -> None:
        self._trusted = trusted_proxies
        self._warned_at = float("-inf")

    def find(self, peer: str | None, *, x_forwarded_for: str, forwarded: str | None) -> str | None:
        """Return the client address: the peer's, or the one that a trusted proxy reports in `X-Forwarded-For`.

        The value of `Forwarded` is never used. Either header shows that there is a proxy.
        """
        if (x_forwarded_for or forwarded) and not _is_within(_parse(peer), self._trusted):
            self._warn(peer)
        return client_address(peer, x_forwarded_for, self._trusted)

    def _warn(self, peer: str | None) -> None:
        now = monotonic()
        if now - self._warned_at < _WARNING_INTERVAL:
            return
        self._warned_at = now
        log.warning(
            "forwarded headers from %s are ignored: it is not in APP_SERVER__TRUSTED_PROXIES. If it is your proxy, add it; until "
            "then all of its clients share one rate limit",
            peer or "an unknown address",
        )


def client_address(peer: str | None, forwarded_for: str, trusted: Sequence[Network]) -> str | None:
    """Return the address of the client: the last entry of `X-Forwarded-For` that is not a trusted proxy.

    The header is ignored when an untrusted peer sends it. Otherwise a client could choose a new address for every attempt.
    """
    address = _parse(peer)
    for hop in reversed(forwarded_for.rsplit(",", _MAX_HOPS)[-_MAX_HOPS:] if forwarded_for else []):
        if not _is_within(address, trusted):
            break
        claimed = _parse(_PORT.sub(r"\1\2", hop.strip()))
        if claimed is None:
            # No trusted proxy confirms the entries to the left of an invalid one.
            break
        address = claimed
    return None if address is None else str(address)


def _is_within(address: IPv4Address | IPv6Address | None, networks: Sequence[Network]) -> bool:
    return address is not None and any(address in network for network in networks)


@lru_cache(_CACHE_SIZE)
def _parse(text: str | None) -> IPv4Address | IPv6Address | None:
    try:
        # A zone names a network interface of the sender. It has no meaning on this machine.
        parsed = ip_address((text or "").partition("%")[0])
    except ValueError:
        return None
    # A dual-stack socket reports an IPv4 client as an IPv6 address.
    return (parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None) or parsed


@lru_cache(_CACHE_SIZE)
def ip_prefix(address: str | None) -> Network | None:
    """Return the network of an address. It is precise enough to recognise a location, and too coarse to track a person."""
    return _network(address, _STORED_PREFIX)


def subscriber(address: str | None) -> str:
    """Return the key under which rate limits count an address: the address itself in IPv4, its /64 network in IPv6."""
    return str(_network(address, _SUBSCRIBER_PREFIX))


def _network(address: str | None, prefixes: dict[int, int]) -> Network | None:
    parsed = _parse(address)
    return None if parsed is None else ip_network((parsed, prefixes[parsed.version]), strict=False)
