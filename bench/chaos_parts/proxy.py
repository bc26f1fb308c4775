# SPDX-License-Identifier: MIT
"""A TCP proxy that misbehaves on order: between postbackd and Redis, as a bad network would be.

    python -m bench.chaos_parts.proxy LISTEN_PORT TARGET_PORT

Orders are lines on standard input: `pass`, `drop` (cut every connection once), `refuse` (cut them and take none),
`stall` (hold back every byte), `delay MS` (hold back each packet so long). It ends with its standard input.
"""

import asyncio
import sys

READ_BYTES = 262_144


class Proxy:
    """One listening port and the connections through it."""

    def __init__(self, listen_port: int, target_port: int) -> None:
        self._listen_port = listen_port
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._delay_s = 0.0

    async def listen(self) -> None:
        """Take connections."""
        if self._server is None:
            self._server = await asyncio.start_server(self._connect, "127.0.0.1", self._listen_port)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while data := await reader.read(READ_BYTES):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        except OSError:  # one side is gone: so is the other, below
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def obey(self, order: str) -> None:
        """Carry out one order."""
        verb, _, argument = order.strip().partition(" ")
        self._delay_s = float(argument) / 1000 if verb == "delay" else 0.0
        if verb == "stall":
            self._open.clear()
        else:
            self._open.set()
        if verb == "refuse" and self._server is not None:
            self._server.close()
            self._server = None
        if verb in ("drop", "refuse"):
            for writer in list(self._writers):
                writer.transport.abort()
        if verb != "refuse":
            await self.listen()


async def main(listen_port: int, target_port: int) -> None:
    """Run until standard input ends."""
    proxy = Proxy(listen_port, target_port)
    await proxy.listen()
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while order := await orders.readline():
        await proxy.obey(order.decode())


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
