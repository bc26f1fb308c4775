# SPDX-License-Identifier: MIT
"""NDJSON line by line: order of the answers, batches, and what comes behind a line that was not committed."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from postbackd.errors import QueueFullError, QueueUnavailableError, QueueUnsureError, RequestError
from postbackd.ndjson import BATCH_ELEMENTS, Lines, Prepared

FULL = QueueFullError("it is full.")


class Door:
    """Takes lines as `<endpoint><items>`; `x` is refused, `r` is over its rate, `n` has no worker number."""

    def __init__(self, fails_at: int | None = None, failure: Exception = FULL) -> None:
        self.commits: list[tuple[str, int]] = []
        self.prepared = self.tried = 0
        self._fails_at = fails_at
        self._failure = failure

    def prepare(self, line: bytes) -> Prepared:
        self.prepared += 1
        kind = line[:1].decode()
        if kind == "x":
            raise RequestError(422, "missing_member", "The request needs a member.", "data")
        if kind == "r":
            raise RequestError(429, "rate_limited", "Too many.", retry_after_s=3)
        if kind == "n":
            raise QueueUnavailableError("no worker number")
        count = int(line[1:])
        return Prepared(SimpleNamespace(id=kind), list(range(count)), [b"e"] * count)

    def enqueue(self, endpoint: Any, elements: list[bytes]) -> None:
        self.tried += 1
        if self.tried - 1 == self._fails_at:
            raise self._failure
        self.commits.append((endpoint.id, len(elements)))

    def take(self, text: str) -> list[Any]:
        answers = Lines(self.prepare, self.enqueue).take(text.replace(" ", "\n").encode())
        assert answers.endswith(b"\n")
        return [json.loads(line) for line in answers.splitlines()]

    def statuses(self, text: str) -> list[int]:
        return [answer["status"] for answer in self.take(text)]


def test_each_line_has_its_answer_in_order_and_blank_ones_have_none() -> None:
    answers = Door().take("a2 x  a1 \t \r b1")
    assert [answer["status"] for answer in answers] == [202, 422, 202, 202]
    assert answers[0] == {"status": 202, "accepted": 2, "ids": ["0" * 16, "0" * 15 + "1"]}
    assert answers[1] == {
        "status": 422,
        "error": {"code": "missing_member", "message": "The request needs a member.", "path": "data"},
    }


def test_lines_of_one_endpoint_share_a_commit() -> None:
    door = Door()
    door.take("a2 a1 x a1 b1 a1")
    assert door.commits == [("a", 4), ("b", 1), ("a", 1)]


def test_batch_is_no_larger_than_a_request_may_be() -> None:
    door = Door()
    door.take(f"a{BATCH_ELEMENTS - 1} a1 a1")
    assert door.commits == [("a", BATCH_ELEMENTS), ("a", 1)]


def test_everything_behind_a_503_is_a_503_and_not_tried() -> None:
    door = Door(fails_at=1)
    answers = door.take("a1 x b1 x b2 x c1 x")
    assert [answer["status"] for answer in answers] == [202, 422, 503, 503, 503, 503, 503, 503]
    codes = [answer["error"]["code"] for answer in answers[2:]]
    assert codes == ["queue_full", "not_tried", "queue_full", "not_tried", "not_tried", "not_tried"]
    assert door.commits == [("a", 1)]
    assert door.prepared == 7  # the last one was not even looked at


def test_batch_without_an_answer_says_that_it_may_be_delivered() -> None:
    answers = Door(fails_at=0, failure=QueueUnsureError("no reply.")).take("a1 a1 b1")
    assert [answer["error"]["code"] for answer in answers] == ["queue_unsure", "queue_unsure", "not_tried"]


def test_line_that_could_not_be_prepared_for_now_ends_the_matter_too() -> None:
    assert Door().statuses("a1 n a1 x") == [202, 503, 503, 503]
    assert Door(fails_at=0).statuses("a1 n a1") == [503, 503, 503]


def test_everything_behind_a_429_is_a_429() -> None:
    door = Door()
    answers = door.take("a1 r a1 x")
    assert [answer["status"] for answer in answers] == [202, 429, 429, 429]
    assert door.commits == [("a", 1)]


def test_fault_of_ours_is_that_line_alone() -> None:
    assert Door(fails_at=0, failure=ValueError("a bug")).statuses("a1 b1") == [500, 202]


@pytest.mark.parametrize("body", [b"", b"\n\n", b" \r\n\t\n"])
def test_body_without_a_line_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        Lines(Door().prepare, Door().enqueue).take(body)
    assert (caught.value.status, caught.value.code) == (400, "empty_body")
