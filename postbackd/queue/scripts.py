# SPDX-License-Identifier: MIT
"""The Lua scripts: read once from their files, loaded per connection, called by their digest."""

import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

import hiredis

from postbackd.queue.wire import Argument, Wire, error_of, pack


class Script:
    """One script, `lua/<name>.lua`; its keys and arguments are documented on top of that file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = resources.files("postbackd.queue").joinpath(f"lua/{name}.lua").read_bytes()
        self.digest = hashlib.sha1(self.text).hexdigest().encode()  # what EVALSHA goes by

    def load_command(self) -> tuple[Argument, ...]:
        return ("SCRIPT", "LOAD", self.text)

    def packed(self, keys: Sequence[bytes], arguments: Sequence[Argument]) -> bytes:
        """The packed call."""
        return pack(("EVALSHA", self.digest, len(keys), *keys, *arguments))

    def call(self, wire: Wire, keys: Sequence[bytes], arguments: Sequence[Argument]) -> Any:
        """Call and wait for the reply, loading the script where the server does not know it (any more)."""
        packed = self.packed(keys, arguments)
        wire.send(packed)
        reply = wire.read()
        if is_noscript(reply):
            wire.call(*self.load_command())
            wire.send(packed)
            reply = wire.read()
        if isinstance(reply, hiredis.ReplyError):
            raise error_of(reply)
        return reply


def is_noscript(reply: object) -> bool:
    """Whether the server said that it does not know the script: it was not run."""
    return isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT")


ENQUEUE = Script("enqueue")
ENQUEUE_ONCE = Script("enqueue_once")
CLAIM = Script("claim")
SETTLE = Script("settle")
RECLAIM = Script("reclaim")
RECALL = Script("recall")
REPLAY = Script("replay")
RESTORE = Script("restore")
REPLAY_SPOOL = Script("replay_spool")
