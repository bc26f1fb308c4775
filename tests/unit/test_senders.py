# SPDX-License-Identifier: MIT
"""Bearer tokens: who is let in, as whom, and what a failed try leaves in the log."""

import pytest

from postbackd.errors import ConfigError, RequestError
from postbackd.scoreboard import Scoreboard
from postbackd.senders import ANYBODY, SAY_EVERY_MS, Rate, Senders, secret_of
from postbackd.settings import SenderLimits

SECRET = "s3cret-of-the-tracker"


def refusal(senders: Senders, authorization: str | None) -> tuple[int, str]:
    with pytest.raises(RequestError) as caught:
        senders.find(authorization, "10.0.0.9")
    return caught.value.status, caught.value.code


def test_without_tokens_everybody_may_send() -> None:
    assert Senders([]).find(None, "") == ANYBODY
    assert Senders([]).find("Bearer whatever", "") == ANYBODY


def test_each_token_is_its_sender() -> None:
    senders = Senders([f"tracker:{SECRET}", "a-bare-one", "old:a:b"])
    assert senders.find(f"Bearer {SECRET}", "").name == "tracker"
    assert senders.find(f"bearer  {SECRET} ", "").name == "tracker"
    assert senders.find("Bearer a-bare-one", "").name == "token-2"
    assert senders.find("Bearer a:b", "").name == "old"
    assert secret_of(f"tracker:{SECRET}") == SECRET and secret_of("a-bare-one") == "a-bare-one"


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        (None, (401, "token_missing")),
        ("", (401, "token_missing")),
        (SECRET, (401, "token_missing")),
        (f"Basic {SECRET}", (401, "token_missing")),
        ("Bearer ", (403, "token_unknown")),
        ("Bearer wrong", (403, "token_unknown")),
        (f"Bearer {SECRET}x", (403, "token_unknown")),
        (f"Bearer {SECRET[:-1]}", (403, "token_unknown")),
        (f"Bearer tracker:{SECRET}", (403, "token_unknown")),
        ("Bearer \udcff", (403, "token_unknown")),
        ("Bearer \xe4\xf6", (403, "token_unknown")),
    ],
)
def test_others_are_refused(authorization: str | None, expected: tuple[int, str]) -> None:
    assert refusal(Senders([f"tracker:{SECRET}"]), authorization) == expected


def test_failed_tries_are_logged_once_a_second_and_without_the_token(capsys: pytest.CaptureFixture[str]) -> None:
    now_ms = 0
    senders = Senders([SECRET], now_ms=lambda: now_ms)
    for _ in range(5):
        refusal(senders, "Bearer guessed-secret")
    now_ms = SAY_EVERY_MS
    refusal(senders, None)
    first, second = capsys.readouterr().err.splitlines()
    assert "why=unknown address=10.0.0.9 count=1" in first
    assert "why=missing address=10.0.0.9 count=5" in second
    assert "guessed" not in first + second and SECRET not in first + second


@pytest.mark.parametrize("tokens", [[""], ["tracker:a b"], ["a\nb"], ["ä"], ["one:aaa", "one:bbb"]])
def test_token_that_cannot_be_is_refused_without_being_shown(tokens: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Senders(tokens)
    assert not any(secret_of(token) in str(caught.value) for token in tokens if len(token) > 3)


class Clock:
    """Invented milliseconds."""

    def __init__(self) -> None:
        self.now_ms = 1000

    def __call__(self) -> int:
        return self.now_ms


def let_in(rate: Rate, tries: int) -> int:
    count = 0
    for _ in range(tries):
        try:
            rate.take()
        except RequestError as error:
            assert (error.status, error.code) == (429, "rate_limited")
            assert error.retry_after_s is not None and error.retry_after_s >= 1
        else:
            count += 1
    return count


def test_rate_lets_in_its_burst_and_then_so_many_a_second() -> None:
    clock = Clock()
    rate = Rate(10, 5, Scoreboard(1).sender_uses(0), 0, clock)
    assert let_in(rate, 20) == 5
    clock.now_ms += 99
    assert let_in(rate, 1) == 0
    clock.now_ms += 1
    assert let_in(rate, 20) == 1
    clock.now_ms += 60_000
    assert let_in(rate, 20) == 5


def test_retry_after_says_when_there_is_room() -> None:
    clock = Clock()
    rate = Rate(0.1, 1, Scoreboard(1).sender_uses(0), 0, clock)
    rate.take()
    with pytest.raises(RequestError) as caught:
        rate.take()
    assert caught.value.retry_after_s == 10
    clock.now_ms += 10_000
    rate.take()


def test_processes_share_a_rate() -> None:
    clock, board = Clock(), Scoreboard(3)
    rates = [Rate(10, 6, board.sender_uses(slot), 7, clock) for slot in range(3)]
    other_sender = Rate(10, 6, board.sender_uses(0), 8, clock)
    assert [let_in(rate, 2) for rate in rates] == [2, 2, 2]
    assert [let_in(rate, 2) for rate in rates] == [0, 0, 0]
    assert let_in(other_sender, 9) == 6


def test_sender_may_send_to_its_hosts_only() -> None:
    limits = {"tracker": SenderLimits(hosts=["a.example", "*.b.example", "[::1]"])}
    sender = Senders([f"tracker:{SECRET}", "other:x"], limits).find(f"Bearer {SECRET}", "")
    for host in ("a.example", "x.b.example", "y.x.b.example", "[::1]"):
        sender.refuse_host(host)
    for host in ("x.a.example", "b.example", "xb.example", "a.example.evil", "", None):
        with pytest.raises(RequestError) as caught:
            sender.refuse_host(host)
        assert (caught.value.status, caught.value.code, caught.value.path) == (403, "host_not_allowed", "endpoint.url")
    assert Senders(["other:x"]).find("Bearer x", "").hosts is None


@pytest.mark.parametrize(
    "limits",
    [{"nobody": SenderLimits(rate=1)}, {"one": SenderLimits(hosts=["http://a"])}, {"one": SenderLimits(hosts=["A"])}],
)
def test_limits_that_cannot_be_are_refused(limits: dict[str, SenderLimits]) -> None:
    with pytest.raises(ConfigError, match=r"ingest\.senders"):
        Senders(["one:aaa"], limits)


def test_failed_tries_are_counted() -> None:
    tries: list[int] = []
    senders = Senders([SECRET], on_refused=lambda: tries.append(1))
    refusal(senders, None)
    refusal(senders, "Bearer x")
    senders.find(f"Bearer {SECRET}", "")
    assert len(tries) == 2
