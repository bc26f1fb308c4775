# SPDX-License-Identifier: MIT
"""A share of a core for a server's main thread: what one does whose core is full, on a machine with few cores.

The kernel's deadline scheduling (sched(7), SCHED_DEADLINE): so much time in each millisecond, at once, whoever else is
running, and never more. (A cgroup's quota of 5 % is a millisecond in each twenty: a client would wait for the next one
and not for the server.) It takes root.
"""

import ctypes
import os
import struct
from pathlib import Path

SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
SCHED_DEADLINE = 6
PERIOD_NS = 1_000_000
_ATTRIBUTES = struct.Struct(
    "IIQiIQQQ"
)  # struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period

_libc = ctypes.CDLL(None, use_errno=True)


def limit_to_share(pid: int, share: float) -> None:
    """From now on this process' main thread has this share of a core."""
    number = SCHED_SETATTR.get(os.uname().machine)
    values = (_ATTRIBUTES.size, SCHED_DEADLINE, 0, 0, 0, int(PERIOD_NS * share), PERIOD_NS, PERIOD_NS)
    packed = ctypes.create_string_buffer(_ATTRIBUTES.pack(*values))
    if number is None or _libc.syscall(number, pid, packed, 0):
        reason = os.strerror(ctypes.get_errno()) if number else "not known on this architecture"
        raise SystemExit(f"bench: SCHED_DEADLINE cannot be set: {reason}; it takes root")


def main_thread_s(pid: int) -> float:
    """CPU time of a process' main thread so far."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9
