# SPDX-License-Identifier: MIT
"""A process' accepted connections, found among its descriptors: bjoern has no list of them.

bjoern owns the descriptors and may close one and get the number again at any moment. So what is to be cut is
duplicated first and asked who it is after that: the duplicate is never somebody else's, and shutting it down shuts
the connection. What is only looked at needs no duplicate: a wrong look is put right by the next.
"""

import contextlib
import ctypes
import os
import socket
import stat
import struct
from collections.abc import Iterator

from postbackd.server.watch import Look

# struct tcp_info (linux/tcp.h), up to tcpi_bytes_retrans: unacked 24, last_data_sent 44, last_data_recv 52,
# last_ack_recv 56, bytes_acked 120, bytes_received 128, notsent_bytes 144, data_segs_out 156, bytes_sent 200
_TCP_INFO = struct.Struct("=24x I 16x I 4x I I 60x Q Q 8x I 8x I 40x Q Q")
_FIONREAD = 0x541B
_python_libc = ctypes.PyDLL(None)  # keeps the GIL: these calls take half a microsecond
_INFO_BUFFER = ctypes.create_string_buffer(_TCP_INFO.size)
_INFO_SIZE = ctypes.c_uint32()
_INFO_SIZE_AT = ctypes.byref(_INFO_SIZE)
_KNOWN_MARGIN = 4096


def listed_descriptors(highest: int) -> list[int]:
    """All descriptors of this process; where there is none left to ask with, all up to beyond the highest known."""
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return list(range(highest + _KNOWN_MARGIN))


def look_at(fd: int) -> Look | None:
    """What the kernel says of a TCP connection; None for everything else. From one thread at a time."""
    _INFO_SIZE.value = _TCP_INFO.size
    if _python_libc.getsockopt(fd, socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BUFFER, _INFO_SIZE_AT) != 0:
        return None
    unacked, sent, received, acked_age, acked, got, not_sent, segments, sent_bytes, again = _TCP_INFO.unpack(
        _INFO_BUFFER.raw
    )
    return Look(sent, received, acked_age, unacked, acked, got, not_sent, segments, sent_bytes - again)


def socket_inode(fd: int) -> int:
    """What tells a socket from the next one with its number; 0 where there is no socket."""
    try:
        status = os.fstat(fd)
    except OSError:
        return 0
    return status.st_ino if stat.S_ISSOCK(status.st_mode) else 0


def waits_for_us(fd: int) -> bool:
    """Whether data of the client lies unread: then it is bjoern that is slow, not the client."""
    unread = ctypes.c_int()
    return bool(_python_libc.ioctl(fd, _FIONREAD, ctypes.byref(unread)) == 0 and unread.value > 0)


@contextlib.contextmanager
def duplicate(fd: int, inode: int) -> Iterator[socket.socket | None]:
    """The connection with this inode, to use and forget; None if the descriptor has become another's."""
    try:
        copy = os.dup(fd)
    except OSError:
        # No descriptor is left: use bjoern's own. That it becomes another's just now is unlikely, and would cut a
        # client that came in this moment; without cutting anybody nobody could come at all.
        if socket_inode(fd) != inode:
            yield None
            return
        with contextlib.suppress(OSError):
            borrowed = socket.socket(fileno=fd)
            try:
                yield borrowed
            finally:
                borrowed.detach()
        return
    if socket_inode(copy) != inode:
        os.close(copy)
        yield None
        return
    with socket.socket(fileno=copy) as connection:
        yield connection


class Door:
    """The listener, as the thing that tells our accepted connections from all other sockets."""

    def __init__(self, listener: socket.socket) -> None:
        self._place = _place(listener)

    def client_of(self, fd: int, inode: int) -> str | bytes | None:
        """The address of a connection accepted here (the first half of an IPv6 one); None for anything else.

        No connection that we open ourselves has the listener's port, since the kernel gives out no local port that
        something is bound to.
        """
        with duplicate(fd, inode) as connection:
            if connection is None:
                return None
            try:
                peer = connection.getpeername()
                if _place(connection) != self._place:
                    return None
            except OSError:  # a listening socket, or one whose peer is gone
                return None
        if connection.family == socket.AF_INET6:  # who has one address has the 2^64 beside it
            packed = socket.inet_pton(socket.AF_INET6, peer[0].partition("%")[0])
            return packed[12:] if packed.startswith(bytes(10) + b"\xff\xff") else packed[:8]
        return peer[0] if connection.family == socket.AF_INET else ""


def _place(endpoint: socket.socket) -> object:
    """The local port (or the path of a unix socket). Not the address: 0.0.0.0 accepts on all of them."""
    name = endpoint.getsockname()
    return name[1] if endpoint.family in (socket.AF_INET, socket.AF_INET6) else name
