"""Where a request came from, as much of it as may be kept."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

_PREFIXES = {4: 24, 6: 48}

type Network = IPv4Network | IPv6Network


def ip_prefix(address: str | None) -> Network | None:
    """Shorten an address to the network it is in: enough to recognise a place, too little to follow a person."""
    try:
        parsed = ip_address(address or "")
    except ValueError:
        return None
    mapped = getattr(parsed, "ipv4_mapped", None) or parsed
    return ip_network((mapped, _PREFIXES[mapped.version]), strict=False)
