# SPDX-License-Identifier: MIT
"""Which sockets of this machine are established TCP connections, asked of the kernel as ss(8) does (sock_diag(7)).

psutil and everything else that reads /proc/net/tcp has the kernel write out all connections, those in TIME_WAIT too,
once for each process: 2.4 s for six processes on a machine with 9,000 of them.
"""

import socket
import struct

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
NLMSG_ERROR, NLMSG_DONE = 2, 3
TCP_ESTABLISHED = 1
TIMEOUT_S = 2.0
READ_BYTES = 65_536

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_REQUEST = struct.Struct("=BBBxI48x")  # inet_diag_req_v2: family, protocol, extensions, states, any socket
_INODE = struct.Struct("=68xI")  # of inet_diag_msg


def established_sockets() -> set[str]:
    """As /proc/<pid>/fd names them; empty where the kernel does not say."""
    found: set[str] = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            found.update(f"socket:[{inode}]" for inode in _inodes(family))
        except OSError:
            continue
    return found


def _inodes(family: int) -> list[int]:
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << TCP_ESTABLISHED)
    header = _HEADER.pack(_HEADER.size + len(request), SOCK_DIAG_BY_FAMILY, REQUEST_DUMP, 1, 0)
    found: list[int] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG) as channel:
        channel.settimeout(TIMEOUT_S)
        channel.send(header + request)
        while True:
            data = channel.recv(READ_BYTES)
            start = 0
            while start + _HEADER.size <= len(data):
                length, kind, _, _, _ = _HEADER.unpack_from(data, start)
                if kind in (NLMSG_DONE, NLMSG_ERROR) or length < _HEADER.size:
                    return found
                found.append(_INODE.unpack_from(data, start + _HEADER.size)[0])
                start += (length + 3) & ~3
