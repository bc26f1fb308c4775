# SPDX-License-Identifier: MIT
"""How many transfers one host may have in flight: an adaptive limit. Pure.

The algorithm is the gradient limit of Netflix' concurrency-limits (a descendant of TCP Vegas), with TCP's slow start
before it and AIMD's multiplicative decrease for failures. A round is as many ended transfers as the limit is, and then:

    failures                            limit * (1 - half their share): all failed halves it; no slow start any more
    slow start, the limit was used      limit * 2
    later, the limit was used           a fifth of the way to limit * gradient + sqrt(limit)
    the limit was not used              as it was: nothing was learnt about more

gradient = what a transfer takes without a queue, with a tolerance, by what it took in this round; from 0.5 to 1.
FLOOR_MS more than that is held against no host: it is as much our own loop's queue as the host's. What it takes without
a queue follows every faster round; it only rises by a probe, two rounds at half the limit after PRESSED_ROUNDS that
looked queued: a host that has become slow looks the same then, one that we have filled up does not. (The average that
Gradient2 has in its place follows the queue that we make: against a host that serves 10 at once it went to 585.)
"""

START = 4  # 20 samples a minute for the breaker of a host that never answers, with time-outs of 10 s
TOLERANCE = 1.5
FLOOR_MS = 25.0
SMOOTHING = 0.2
DOWN_SHARE = 0.2
PRESSED_ROUNDS = 20
PROBE_ROUNDS = 2  # the first one still ends what began in the queue
FAILED_SHARE = 0.05  # fewer failures than this say nothing about load


class FlowLimit:
    """The limit of one host in one worker; `value` is what may be in flight now."""

    __slots__ = ("_exact", "_least", "_most", "_pressed", "_probing", "base_ms", "is_starting", "value")

    def __init__(self, most: int) -> None:
        self._most = float(most)
        self._least = float(min(START, most))
        self.restart()

    def restart(self) -> None:
        """From small again, with nothing known: the host is new, or was gone."""
        self.base_ms = 0.0  # what a transfer takes without a queue; 0: none has been answered yet
        self.is_starting = True
        self._pressed = 0  # rounds that looked queued since the last probe
        self._probing = 0  # rounds of the probe to come
        self._set(self._least)

    def round_ended(self, mean_ms: float, failed_share: float, was_used: bool) -> None:
        """`mean_ms` of the transfers that were answered; 0 when none was."""
        if self._probing:
            self._probe_on(mean_ms)
            return
        if mean_ms and (not self.base_ms or mean_ms < self.base_ms):
            self.base_ms += (DOWN_SHARE if self.base_ms else 1.0) * (mean_ms - self.base_ms)
        exact = self._exact
        if failed_share >= FAILED_SHARE:
            self.is_starting = False
            exact *= 1 - failed_share / 2
        if was_used and mean_ms:
            gradient = (TOLERANCE * self.base_ms + FLOOR_MS) / mean_ms
            if gradient < 1:
                self.is_starting = False
                self._pressed += 1
            if self.is_starting:
                exact *= 2
            else:
                exact += SMOOTHING * (exact * (min(max(gradient, 0.5), 1.0) - 1) + exact**0.5)
        self._set(exact)
        if self._pressed >= PRESSED_ROUNDS:
            self._pressed = 0
            self._probing = PROBE_ROUNDS
            self.value = max(int(exact / 2), int(self._least))

    def _probe_on(self, mean_ms: float) -> None:
        self._probing -= 1
        if not self._probing:
            if mean_ms:
                self.base_ms = mean_ms
            self._set(self._exact)

    def _set(self, exact: float) -> None:
        self._exact = max(min(exact, self._most), self._least)
        self.value = int(self._exact)
