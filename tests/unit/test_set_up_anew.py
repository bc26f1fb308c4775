# SPDX-License-Identifier: MIT
"""When older epochs are believed: a majority of those asked, for long, without anybody who knows the newer one."""

from postbackd.queue.set_up_anew import ANEW_S, OlderEpochs

KNOWN = 7


def believed(*rounds: list[int], every_s: float = ANEW_S) -> int | None:
    """What the last of several rounds of three questions is answered."""
    older = OlderEpochs()
    return [older.to_believe(told, KNOWN, 3, number * every_s) for number, told in enumerate(rounds)][-1]


def test_majority_for_long_is_believed_and_its_newest_epoch_taken() -> None:
    assert believed([0, 2], [0, 2]) == 2
    assert believed([2, 2, 2]) is None
    assert believed([2, 2, 2], [2, 2, 2], every_s=ANEW_S - 0.1) is None


def test_one_of_three_may_be_cut_off_from_the_others() -> None:
    assert believed([2], [2]) is None
    assert believed([], []) is None


def test_whoever_knows_the_epoch_begins_the_time_again() -> None:
    assert believed([2, 2], [2, KNOWN], [2, 2]) is None
    assert believed([2, 2], [2, KNOWN + 1, 2]) is None
    assert believed([2, 2], [2], [2, 2]) is None, "nor does a round without a majority count"
    assert believed([2, 2], [2], [2, 2], [2, 2]) == 2
