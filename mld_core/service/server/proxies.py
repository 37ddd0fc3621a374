"""Proxies that are believed: the address of who asks, and the name of the person they signed in."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

FORWARDED = "x-forwarded-for"


class Proxies:
    """What the headers of trusted proxies say; those of anybody else are not looked at.

    Args:
        trusted: addresses and networks of the proxies.
        user_header: the header in which they name the person; "" = nobody is signed in so.

    Raises:
        ValueError: an address that is none.

    >>> proxies = Proxies(["10.0.0.0/8"], "X-Forwarded-User")
    >>> proxies.client("10.0.0.1", "6.6.6.6, 203.0.113.9, 10.0.0.2")
    '203.0.113.9'
    >>> proxies.client("203.0.113.9", "127.0.0.1")
    '203.0.113.9'
    """

    def __init__(self, trusted: Iterable[str] = (), user_header: str = "") -> None:
        try:
            self._networks = [ipaddress.ip_network(one, strict=False) for one in trusted]
        except ValueError as error:
            raise ValueError(f"trusted_proxies: {error}; expected addresses or networks") from None
        self.user_header = user_header.lower()

    def trusts(self, address: str) -> bool:
        """Whether it is the address of a trusted proxy."""
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = getattr(found, "ipv4_mapped", None)
        return any((mapped or found) in network for network in self._networks)

    def client(self, peer: str, forwarded: str) -> str:
        """The address of who asks: the last that no trusted proxy has; what stands before it is claimed."""
        if not self.trusts(peer):
            return peer
        for text in reversed([part.strip() for part in forwarded.split(",") if part.strip()]):
            if not self.trusts(text):
                return text[:60]
        return peer

    def person(self, peer: str, headers: Mapping[str, str]) -> str:
        """The name of the person a trusted proxy signed in; "" for none."""
        if not self.user_header or not self.trusts(peer):
            return ""
        return headers.get(self.user_header, "").strip()
