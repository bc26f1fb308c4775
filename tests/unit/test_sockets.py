# SPDX-License-Identifier: MIT
"""Established connections, by the kernel's own answer."""

import os
import socket

import pytest

from postbackd.admin.sockets import established_sockets


def name_of(opened: socket.socket) -> str:
    return os.readlink(f"/proc/self/fd/{opened.fileno()}")


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_both_ends_of_a_connection_are_found_and_its_listener_is_not(family: int, address: str) -> None:
    with socket.socket(family) as listener:
        try:
            listener.bind((address, 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        listener.listen()
        with socket.create_connection(listener.getsockname()[:2]) as one, listener.accept()[0] as other:
            found = established_sockets()
            assert {name_of(one), name_of(other)} <= found
            assert name_of(listener) not in found
            closed = name_of(one)
    assert closed not in established_sockets()


def test_many_connections_come_in_several_pieces() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1000)
        pairs = [(socket.create_connection(listener.getsockname()), listener.accept()[0]) for _ in range(400)]
        found = established_sockets()
        assert all(name_of(end) in found for pair in pairs for end in pair)
        for pair in pairs:
            for end in pair:
                end.close()
