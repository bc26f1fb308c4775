# SPDX-License-Identifier: MIT
"""Bearer tokens: who is let in, as whom, and what a failed try leaves in the log."""

import pytest

from postbackd.errors import ConfigError, RequestError
from postbackd.senders import ANYBODY, SAY_EVERY_MS, Senders, secret_of

SECRET = "s3cret-of-the-tracker"


def refusal(senders: Senders, authorization: str | None) -> tuple[int, str]:
    with pytest.raises(RequestError) as caught:
        senders.name_of(authorization, "10.0.0.9")
    return caught.value.status, caught.value.code


def test_without_tokens_everybody_may_send() -> None:
    assert Senders([]).name_of(None, "") == ANYBODY
    assert Senders([]).name_of("Bearer whatever", "") == ANYBODY


def test_each_token_is_its_sender() -> None:
    senders = Senders([f"tracker:{SECRET}", "a-bare-one", "old:a:b"])
    assert senders.name_of(f"Bearer {SECRET}", "") == "tracker"
    assert senders.name_of(f"bearer  {SECRET} ", "") == "tracker"
    assert senders.name_of("Bearer a-bare-one", "") == "token-2"
    assert senders.name_of("Bearer a:b", "") == "old"
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
    senders = Senders([SECRET], lambda: now_ms)
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
