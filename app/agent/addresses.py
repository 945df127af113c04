"""Which addresses are those of the internet."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

_EMBEDS = tuple(
    map(ip_network, ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))
)
"""Addresses that lead to an IPv4 address inside them: IPv4-compatible and IPv4-translated ones (RFC 4291, RFC 2765), NAT64 (RFC 6052,
RFC 8215), 6to4 (RFC 3056), Teredo (RFC 4380)."""


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is one of the internet, and surely not of a network behind this server."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return is_public(address.ipv4_mapped)
    if isinstance(address, IPv6Address) and (address.is_site_local or any(address in each for each in _EMBEDS)):
        return False
    return address.is_global and not address.is_multicast
