# SPDX-License-Identifier: MIT
"""The address policy as a table, with the addresses just outside each range."""

import pytest

from postbackd.delivery.egress import Policy
from postbackd.errors import ConfigError

PUBLIC = [
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2606:4700::1111",
    "2003::",
    "2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "::ffff:1.1.1.1",
]
DENIED = [
    "0.0.0.0",
    "0.255.255.255",
    "10.0.0.0",
    "10.255.255.255",
    "100.64.0.0",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.255",
    "169.254.169.254",
    "172.16.0.0",
    "172.31.255.255",
    "192.0.0.0",
    "192.0.0.255",
    "192.0.0.9",
    "192.168.0.0",
    "192.168.255.255",
    "198.18.0.0",
    "198.19.255.255",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.0",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2002:808:808::",
    "2001::1",
    "2001:db8::1",
    "fc00::",
    "fdff:ffff::",
    "fe80::1",
    "febf::",
    "fec0::1",
    "ff02::1",
    "fe80::1%eth0",
    "0x7f.1",
    "2130706433",
    "0177.0.0.1",
    "127.1",
    "localhost",
    "1.1.1.1.",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_address_is_allowed(address: str) -> None:
    assert Policy([], []).verdict(address) is None


@pytest.mark.parametrize("address", [*DENIED, ""])
def test_everything_else_is_denied_with_a_reason(address: str) -> None:
    assert Policy([], []).verdict(address)


def test_allowed_network_wins_over_denied() -> None:
    policy = Policy(["127.0.0.0/8", "::1/128"], ["127.0.0.0/8", "8.8.8.0/24"])
    assert policy.verdict("127.0.0.1") is None
    assert policy.verdict("::ffff:127.0.0.1") is None
    assert policy.verdict("::1") is None
    assert "deny_networks" in (policy.verdict("8.8.8.8") or "")
    assert policy.verdict("8.8.9.8") is None


def test_wrong_network_names_its_setting() -> None:
    with pytest.raises(ConfigError, match=r"security.deny_networks.*10.0.0.1/8"):
        Policy([], ["10.0.0.1/8"])
