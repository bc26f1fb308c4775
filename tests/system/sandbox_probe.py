# SPDX-License-Identifier: MIT
"""Tries what a service that was taken over would try, and prints what worked. Run inside a unit's sandbox."""

import ctypes
import json
import mmap
import os
import socket
from collections.abc import Callable
from pathlib import Path

CLONE_NEWUSER = 0x10000000
PLACES = [
    "/etc",
    "/usr",
    "/opt",
    "/home",
    "/root",
    "/srv",
    "/var",
    "/var/lib",
    "/run",
    "/proc/sys/kernel",
    "/sys",
    "/boot",
]
OWN = ["/run/postbackd", "/var/lib/postbackd", "/var/log/postbackd"]
libc = ctypes.CDLL(None, use_errno=True)


def write(folder: str) -> None:
    path = Path(folder) / "probe"
    path.write_text("x")
    path.unlink()


def call(function: str, *arguments: object) -> None:
    if getattr(libc, function)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), function)


def make_setuid() -> None:
    path = Path("/var/lib/postbackd/probe")
    path.write_text("x")
    try:
        path.chmod(0o4755)
    finally:
        path.unlink()


def list_processes_of_others() -> None:
    if not Path("/proc/1/status").exists():
        raise PermissionError


def read_disk() -> None:
    if not [name for name in os.listdir("/dev") if name.startswith(("vd", "sd", "nvme", "mem", "kmsg"))]:
        raise PermissionError


def attempts() -> dict[str, Callable[[], object]]:
    return {
        **{f"write {place}": lambda place=place: write(place) for place in sorted(PLACES + OWN)},
        "list /home": lambda: os.listdir("/home"),
        "open a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        "open a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        "bind port 80": lambda: socket.create_server(("127.0.0.1", 80)).close(),
        "make a user namespace": lambda: call("unshare", CLONE_NEWUSER),
        "mount": lambda: call("mount", b"tmpfs", b"/tmp", b"tmpfs", 0, None),
        "map memory to write and run": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC),
        "set the host's name": lambda: call("sethostname", b"probe", 5),
        "become root": lambda: os.setuid(0),
        "make a setuid file": make_setuid,
        "see other users' processes": list_processes_of_others,
        "see disks": read_disk,
    }


def main() -> None:
    could = []
    for name, attempt in attempts().items():
        try:
            attempt()
        except OSError:
            continue
        could.append(name)
    print("could:", json.dumps(could))


if __name__ == "__main__":
    main()
