# SPDX-License-Identifier: MIT
"""A worker that starts looks at the queue server twice: what the second look may end, and what it may not."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from postbackd.children import _look_at_queue
from postbackd.errors import BootError, QueueAwayError, QueueUnavailableError
from postbackd.queue.wire import Wire
from postbackd.settings import Queue, Settings
from tests.support.servers import Server


def look(url: str, data_dir: Path, prove: Any) -> None:
    settings = Settings(data_dir=str(data_dir), queue=Queue(url=url))
    _look_at_queue(SimpleNamespace(index=1), settings, url, prove)  # type: ignore[arg-type]


def test_server_that_goes_away_between_the_looks_is_away_and_not_unfit(own_server: Server, tmp_path: Path) -> None:
    """A worker that was started at such a moment ended its daemon."""

    def die(wire: Wire) -> None:
        own_server.kill()
        wire.call("PING")

    with pytest.raises(QueueAwayError):
        look(own_server.url, tmp_path, die)
    own_server.start()
    (tmp_path / "numbers").mkdir()
    (tmp_path / "numbers" / "1.num").touch()  # as a data_dir that has been used
    look(own_server.url, tmp_path, die)


def test_server_that_answers_and_is_unfit_ends_the_start(server: redis.Redis, url: str, tmp_path: Path) -> None:
    (tmp_path / "numbers").mkdir()
    (tmp_path / "numbers" / "1.num").touch()

    def refuse(_wire: Wire) -> None:
        raise QueueUnavailableError("appendfsync is everysec.")

    with pytest.raises(BootError, match="everysec") as caught:
        look(url, tmp_path, refuse)
    assert not isinstance(caught.value, QueueAwayError)
