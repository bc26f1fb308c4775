# SPDX-License-Identifier: MIT
"""A target that answers when the test says so, not after a time: what is in flight stays so, however slow a machine."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

BACKLOG = 4096
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class GatedTarget:
    """Takes requests without a body and keeps them waiting until `open` is called; later ones are answered at once."""

    def __init__(self) -> None:
        self.received = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._gate = asyncio.Event()
        self._stop = asyncio.Event()
        listens = threading.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._run(listens)), daemon=True)
        self._thread.start()
        listens.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        self._loop.call_soon_threadsafe(self._gate.set)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _run(self, listens: threading.Event) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=BACKLOG)
        self.port = server.sockets[0].getsockname()[1]
        listens.set()
        await self._stop.wait()
        server.close()
        serving = asyncio.all_tasks() - {asyncio.current_task()}
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await reader.readuntil(b"\r\n\r\n"):
                self.received += 1
                await self._gate.wait()
                writer.write(ANSWER)
                await writer.drain()
        writer.close()


@contextmanager
def gated_target() -> Iterator[GatedTarget]:
    """One for the length of a with block, in a thread of its own."""
    target = GatedTarget()
    try:
        yield target
    finally:
        target.close()
