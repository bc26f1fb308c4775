# SPDX-License-Identifier: MIT
"""Ports of tests and benches: no two processes get the same, and the kernel gives none of them to a connection."""

import subprocess
import sys
from pathlib import Path

from bench.ports import COUNT, LOWEST

SCRIPT = "from bench.ports import free_port; print(*(free_port() for _ in range(100)))"


def test_processes_that_ask_at_once_get_ports_of_their_own() -> None:
    asking = [subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    ports = [int(port) for process in asking for port in process.communicate()[0].split()]
    assert len(set(ports)) == len(ports) == 400
    lowest, highest = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert lowest < LOWEST + COUNT or not [port for port in ports if lowest <= port <= highest]
