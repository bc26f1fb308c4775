# SPDX-License-Identifier: MIT
"""Targets of very unequal manners in one process: which one a client meets is the loopback address it connects to.

    127.0.1.x  answers 200 at once          127.0.3.x  answers 200 after 5 s
    127.0.2.x  reads and never answers      127.0.4.x  reads and resets the connection
    127.1.a.b  answers 200 after the (256 a + b)-th of the latencies given

Arguments: the port, then latencies in ms. Listens on all addresses, so run it on a machine of your own.
"""

import heapq
import select
import socket
import struct
import sys
import time

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HANGS, RESETS = -1.0, -2.0
MANNERS = {1: 0.0, 2: HANGS, 3: 5.0, 4: RESETS}


def manner(address: str, latencies_s: list[float]) -> float:
    """Seconds before the answer, or HANGS, or RESETS."""
    _, second, third, fourth = map(int, address.split("."))
    return latencies_s[256 * third + fourth] if second else MANNERS[third]


def main(port: int, latencies_s: list[float]) -> None:
    listener = socket.create_server(("0.0.0.0", port), backlog=4096)
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    clients: dict[int, tuple[socket.socket, float]] = {}
    due: list[tuple[float, int, socket.socket]] = []
    count = 0
    while True:
        wait_s = max(0.0, due[0][0] - time.monotonic()) if due else -1.0
        for descriptor, _ in epoll.poll(wait_s):
            if descriptor == listener.fileno():
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                clients[client.fileno()] = (client, manner(client.getsockname()[0], latencies_s))
                epoll.register(client, select.EPOLLIN)
                continue
            client, wait_s = clients[descriptor]
            try:
                data = client.recv(65536)
            except OSError:
                data = b""
            if wait_s == RESETS:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if not data or wait_s == RESETS:
                del clients[descriptor]
                client.close()
            elif wait_s == 0.0:
                client.send(ANSWER)
            elif wait_s > 0:
                count += 1
                heapq.heappush(due, (time.monotonic() + wait_s, count, client))
        now_s = time.monotonic()
        while due and due[0][0] <= now_s:
            client = heapq.heappop(due)[2]
            try:
                client.send(ANSWER)
            except OSError:
                continue  # it has gone, or been cut off after its time-out


if __name__ == "__main__":
    main(int(sys.argv[1]), [float(text) / 1000 for text in sys.argv[2:]])
