"""Where a request came from, as much of it as may be kept."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

_PREFIXES = {4: 24, 6: 48}

type Network = IPv4Network | IPv6Network


def client_address(peer: str | None, forwarded_for: str, trusted: Sequence[Network]) -> str | None:
    """Give the address of the client itself: the last in `X-Forwarded-For` that is not a proxy we trust.

    A header from anybody else is not read: whoever may write it could choose an address for every attempt.
    """
    address = _parsed(peer)
    for hop in reversed(forwarded_for.split(",") if forwarded_for else []):
        if address is None or not any(address in network for network in trusted):
            break
        address = _parsed(hop.strip()) or address
    return None if address is None else str(address)


def _parsed(text: str | None) -> IPv4Address | IPv6Address | None:
    try:
        parsed = ip_address(text or "")
    except ValueError:
        return None
    # An IPv4 client of a socket that speaks both is shown as an IPv6 address.
    return (parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None) or parsed


def ip_prefix(address: str | None) -> Network | None:
    """Shorten an address to the network it is in: enough to recognise a place, too little to follow a person."""
    parsed = _parsed(address)
    return None if parsed is None else ip_network((parsed, _PREFIXES[parsed.version]), strict=False)
