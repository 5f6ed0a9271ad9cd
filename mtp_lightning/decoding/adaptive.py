"""How many heads should draft? As many as pay, by what was accepted and what a step took, so far in this text.

Tokens that k heads would make certain in a forward, from the acceptance of each place; seconds of such a forward, as
measured: the best quotient wins. Drafting costs time on a machine whose forwards are not flat in the number of tokens
(any CPU beyond four, any GPU at large batches), or on text that the heads do not foresee; then k falls to 1, plain
decoding, and is tried again from time to time, more and more rarely while that goes on.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median

FORGET = 0.9
"""Weight of the past in the running means of acceptance."""
TIMES = 9
"""Forwards of one number of heads whose median time counts."""
TRIAL = 2
"""Forwards that try a number of heads."""
PATIENCE, MOST_PATIENCE = 32, 512
"""Forwards until what is not in use is tried again: at first, and at most."""
MARGIN = 1.02
"""What another number of heads has to promise before it replaces the one in use."""


class Adaptive:
    """Chooses `heads_used` for every next forward.

    Args:
        places: how many places ahead each head looks.
        most: heads that may be used.
        clock: seconds; for tests.
    """

    def __init__(self, places: Sequence[int], most: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.places, self.most, self.clock = places, most, clock
        self.acceptance = dict.fromkeys(range(2, places[most - 1] + 1), 0.5)
        """Share of drafts accepted at a place, once all before were."""
        self.seconds: dict[int, deque[float]] = {k: deque(maxlen=TIMES) for k in range(1, most + 1)}
        self.current, self.wait, self.patience = most, PATIENCE, PATIENCE
        self.trials = self._trials(*(2**i for i in range(most.bit_length()) if 2**i < most), most) if most > 1 else []
        self.batch: int | None = None
        self.last = clock()

    def start(self) -> None:
        """A step begins; without a word it begins where the last one ended."""
        self.last = self.clock()

    def next(self, verified: int, drafted: int, accepted: Sequence[int]) -> int:
        """Take note of a step that verified the drafts of `verified` heads and drafted with `drafted`; returns how many
        heads are to draft in the next.

        Args:
            accepted: tokens that became certain in each row.
        """
        now = self.clock()
        seconds, self.last = now - self.last, now
        if verified == drafted:  # otherwise it was a step of neither
            self.seconds[drafted].append(seconds)
        for place in range(2, self.places[verified - 1] + 1):
            hits = [count >= place for count in accepted if count >= place - 1]
            if hits:
                self.acceptance[place] = FORGET * self.acceptance[place] + (1 - FORGET) * sum(hits) / len(hits)
        self._check_batch(len(accepted))
        if self.trials:
            return self.trials.pop()
        best = max((k for k in self.seconds if self.seconds[k]), key=self.rate)
        if best != self.current and self.rate(best) > MARGIN * self.rate(self.current):
            self.current, self.patience = best, PATIENCE
            self.wait = min(self.wait, PATIENCE)
        self.wait -= 1
        if self.wait <= 0:
            self.trials = self._trials(*{1, self.current - 1, self.current + 1, 2 * self.current} - {self.current})
            self.wait = self.patience = min(2 * self.patience, MOST_PATIENCE)
        return self.current

    def _check_batch(self, rows: int) -> None:
        """Where half of the rows have left, what a forward takes has to be measured again."""
        if self.batch is not None and rows <= self.batch / 2:
            for times in self.seconds.values():
                times.clear()
            self.trials = self._trials(*{1, self.current, self.most})
            self.wait = self.patience = PATIENCE
        elif self.batch is not None:
            return
        self.batch = rows

    def tokens(self, heads_used: int) -> float:
        """Expected tokens of a forward that verifies the drafts of so many heads."""
        total, reached = 1.0, 1.0
        for place in range(2, self.places[heads_used - 1] + 1):
            reached *= self.acceptance[place]
            total += reached
        return total

    def rate(self, heads_used: int) -> float:
        """Expected tokens a second; 0 while it was never measured."""
        times = self.seconds[heads_used]
        return self.tokens(heads_used) / median(times) if times else 0.0

    def _trials(self, *numbers: int) -> list[int]:
        """Steps to come, the last first. What they measure replaces what was measured before."""
        tried = [k for k in numbers if 1 <= k <= self.most]
        for k in tried:
            self.seconds[k].clear()
        return [k for k in tried for _ in range(TRIAL + 1)]
