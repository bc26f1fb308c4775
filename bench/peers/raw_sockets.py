# SPDX-License-Identifier: MIT
"""The floor of delivery: keep-alive sockets in Python, send and receive, nothing else done.

Arguments: port, requests, connections. Prints one JSON object with the CPU of its loop.
"""

import json
import socket
import sys
import time

URL = "/data?key=Phyllobates&value=Terribilis&foo="


def main(port: int, count: int, connections: int) -> None:
    """Every connection has one request out at a time; all are sent, then all are read."""
    request = f"GET {URL} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: floor\r\nAccept: */*\r\n\r\n".encode()
    sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
    for connection in sockets:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    rounds = count // connections
    cpu_s, started_s = time.process_time(), time.monotonic()
    for _ in range(rounds):
        for connection in sockets:
            connection.send(request)
        for connection in sockets:
            if b" 200 " not in connection.recv(4096):
                raise SystemExit("the target did not answer 200")
    done = rounds * connections
    took_s = time.monotonic() - started_s
    print(json.dumps({"cpu_us": (time.process_time() - cpu_s) / done * 1e6, "per_s": done / took_s}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
