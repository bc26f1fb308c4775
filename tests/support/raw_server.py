# SPDX-License-Identifier: MIT
"""A real TCP server that answers each connection by a given script: for answers that no decent server gives."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Script = Callable[[socket.socket], None]


def read_request(client: socket.socket) -> bytes:
    """Header and body (by Content-Length) of one request; what came so far when the client closes."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(65536)
        if not piece:
            return data
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        body += client.recv(65536)
    return head + b"\r\n\r\n" + body


def reset(client: socket.socket) -> None:
    """Close with a RST instead of a FIN."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@contextmanager
def raw_server(script: Script) -> Iterator[int]:
    """Its port; each connection gets a thread that runs the script and closes."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    clients: list[socket.socket] = []

    def serve_one(client: socket.socket) -> None:
        try:
            script(client)
        except OSError:
            return  # the client has gone, or the test is over
        finally:
            client.close()

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            clients.append(client)
            threading.Thread(target=serve_one, args=(client,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for client in clients:
            client.close()
        thread.join()
