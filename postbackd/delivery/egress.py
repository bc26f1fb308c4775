# SPDX-License-Identifier: MIT
"""Where a postback may go: address → verdict. Pure.

The address is the one actually connected to, so a name that changes its mind between look-up and connection
gains nothing. Everything that is not public is denied unless a network of the configuration allows it.
"""

import ipaddress
from collections.abc import Sequence

from postbackd.errors import ConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Beyond what `is_global` says no to, and named so that no version of Python changes the verdict.
DENIED = [
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "192.0.0.0/24",
        "198.18.0.0/15",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/96",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2002::/16",
        "2001::/32",
        "2001:db8::/32",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    )
]


def parse_networks(setting: str, texts: Sequence[str]) -> list[Network]:
    """The networks of a setting; raises ConfigError that names it."""
    networks = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise ConfigError(f"{setting}: {error}: write a network as 10.0.0.0/8 or fd00::/8") from None
    return networks


def reaches_inside(network: str) -> bool:
    """Whether an allowed network has an address that is denied otherwise: 0.0.0.0/0 has, though it is public too."""
    opened = ipaddress.ip_network(network)
    mapped = ipaddress.ip_network("::ffff:0:0/96")
    if isinstance(opened, ipaddress.IPv6Network) and opened.overlaps(mapped):
        return True
    return not opened.is_global or any(
        opened.version == denied.version and opened.overlaps(denied) for denied in DENIED
    )


class Policy:
    """The address policy of a configuration; allow wins over deny."""

    def __init__(self, allow_networks: Sequence[str], deny_networks: Sequence[str]) -> None:
        self._allow = parse_networks("security.allow_networks", allow_networks)
        self._deny = parse_networks("security.deny_networks", deny_networks)

    def verdict(self, text: str) -> str | None:
        """None when the address may be connected to, else why not."""
        try:
            address: Address = ipaddress.ip_address(text)
        except ValueError:
            return f"{text!r} is no IP address"
        if isinstance(address, ipaddress.IPv6Address):
            if address.scope_id is not None:
                return f"{text} names a zone"
            address = address.ipv4_mapped or address  # ::ffff:a.b.c.d reaches a.b.c.d, so that is what is judged
        if any(address in network for network in self._allow):
            return None
        if any(address in network for network in self._deny):
            return f"{address} is in a network that security.deny_networks denies"
        if not address.is_global or any(address in network for network in DENIED):
            return f"{address} is not a public address: security.allow_networks can allow it"
        return None
