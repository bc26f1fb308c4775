# SPDX-License-Identifier: MIT
"""What systemd and we tell each other: sockets it opened for us, how we are, and that standard error is its journal.

The protocols are a few environment variables (sd_listen_fds(3), sd_notify(3), JOURNAL_STREAM of systemd.exec(5));
without them every function here does nothing.
"""

import os
import socket

FIRST_FD = 3


def inherited_sockets() -> list[socket.socket]:
    """The listening sockets of our .socket unit. The variables are removed: our children are not meant."""
    pid = os.environ.pop("LISTEN_PID", "")
    count = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    sockets = [socket.socket(fileno=fd) for fd in range(FIRST_FD, FIRST_FD + int(count))]
    for inherited in sockets:
        os.set_inheritable(inherited.fileno(), False)
    return sockets


def is_manager() -> bool:
    """Whether somebody wants to be notified: systemd, or start-stop-daemon for the init script."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def is_journal(fd: int) -> bool:
    """Whether a descriptor leads to the journal, which takes a line's priority from a `<3>` before it."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(fd)
    except OSError:  # closed
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def notify(state: str, status: str = "") -> None:
    """Send one state, such as READY=1, and what `systemctl status` is to say.

    systemd going away is its own matter, never a reason to stop."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket
    if status:
        state += "\nSTATUS=" + " ".join(status.splitlines())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto(state.encode(), address)
        except OSError:
            return


def watchdog_period_ms() -> int | None:
    """How often to send WATCHDOG=1: half of WatchdogSec=; None without one."""
    period_us = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not period_us.isdigit() or pid != str(os.getpid()):
        return None
    return max(1, int(period_us) // 2000)
