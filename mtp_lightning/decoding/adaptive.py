"""How many heads should draft? As many as pay, by what was accepted and what forwards took, in all texts so far.

    gain of k heads = tokens that a forward with k heads makes certain / its seconds over those of a plain forward

The tokens follow from how often the draft at each offset is accepted, which every forward that verifies shows. The cost
(those seconds) depends on the machine and the number of rows: it is measured in trials, a few forwards with another k
beside those with the k in use. The highest gain wins; k = 1, plain decoding, has gain 1.

What a trial loses, against the k in use for the same tokens, is a debt, paid off with SHARE of all time; the next trial
waits until it is paid. So a new engine begins plainly and tries two heads, and more only if the results with two are
promising; and where drafts never pay it is slower than plain decoding by about SHARE. The `Experience` is kept from
text to text: the next begins with what is best.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from statistics import median

MEMORY = 64
"""About how many drafts at an offset its acceptance is an average over."""
DOUBT = 2.0
"""Drafts that weigh as much as what the offset before suggests (the first offset: that every second one is right)."""
KEPT = 5
"""Newest measurements of one thing that are kept."""
TRIAL = 4
"""Forwards of one trial."""
SURE = 3
"""Trials that make the cost of the heads in use credible."""
REST = 32
"""Forwards before a trial that only checks what is known."""
SHARE = 0.01
"""Of all time, what trials may lose."""
MARGIN = 1.06
"""Gain that a number of heads has to have over the one in use to replace it."""
FURTHER = 1 / 3
"""What a head adds to the cost, over what those before it do on average: a low guess, until it is tried."""


class Experience:
    """What decoding with one engine has taught so far.

    Args:
        offsets: how many tokens ahead each head looks.
    """

    def __init__(self, offsets: Sequence[int]) -> None:
        self.offsets, self.most = offsets, len(offsets)
        self.right = dict.fromkeys(range(2, offsets[-1] + 1), 0.0)
        self.reached = dict(self.right)
        """Drafts at each offset whose turn came; `right`: those of them that were accepted. Old ones fade."""
        self.costs: dict[tuple[int, int], deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        """(size of the batch, heads used) -> seconds of a forward over a plain one's, as every trial found them."""
        self.debt = 0.0
        """Seconds."""
        self.trials, self.rested = 0, 0
        """How many there were; forwards since the last."""

    def observe(self, heads_used: int, accepted: Sequence[int]) -> None:
        """A forward verified the drafts of so many heads, and made so many tokens certain in each row."""
        for offset in range(2, self.offsets[heads_used - 1] + 1):
            hits = [count >= offset for count in accepted if count >= offset - 1]
            fade = (1 - 1 / MEMORY) ** len(hits)
            self.right[offset] = fade * self.right[offset] + sum(hits)
            self.reached[offset] = fade * self.reached[offset] + len(hits)

    def learn(self, rows: int, used: int, tried: int, ratio: float) -> None:
        """A forward with `tried` heads took `ratio` times one with `used`."""
        if tried == 1:
            self.costs[_size(rows), used].append(1 / ratio)
        else:
            self.costs[_size(rows), tried].append((self.cost(rows, used) or 1.0) * ratio)

    def tokens(self, heads_used: int) -> float:
        """Expected of a forward that verifies the drafts of so many heads."""
        total, chance, reached = 1.0, 0.5, 1.0
        for offset in range(2, self.offsets[heads_used - 1] + 1):
            chance = (self.right[offset] + DOUBT * chance) / (self.reached[offset] + DOUBT)
            reached *= chance
            total += reached
        return total

    def cost(self, rows: int, heads_used: int) -> float | None:
        """Of a forward, in plain ones; at a size never measured the nearest size's; None before any measurement."""
        if heads_used == 1:
            return 1.0
        sizes = [size for size, k in self.costs if k == heads_used]
        nearest = min(sizes, key=lambda size: abs(size - _size(rows)), default=None)
        return None if nearest is None else median(self.costs[nearest, heads_used])

    def gain(self, rows: int, heads_used: int) -> float:
        """Over plain decoding; 0 while it was never measured."""
        cost = self.cost(rows, heads_used)
        return self.tokens(heads_used) / cost if cost else 0.0

    def best(self, rows: int, used: int = 1) -> int:
        """The number of heads to go on with. Plain decoding needs no margin to replace drafts that do not pay."""
        used = used if self.gain(rows, used) > 1 else 1
        best = max(range(1, self.most + 1), key=lambda k: self.gain(rows, k))
        return best if self.gain(rows, best) > MARGIN * self.gain(rows, used) else used

    def measured(self, rows: int, heads_used: int) -> int:
        """Trials in which the cost at this very size was measured."""
        return SURE if heads_used == 1 else len(self.costs.get((_size(rows), heads_used), ()))

    def to_try(self, rows: int, used: int) -> int | None:
        """The next trial, if there is a reason for one: the most promising number that was never tried, up to twice as
        many heads as were tried; plain decoding, while the cost of the heads in use is that of another size, or hardly
        measured; after a rest, plain decoding and a neighbour in turn.
        """
        tried = [k for k in range(1, self.most + 1) if self.cost(rows, k)]
        promises = {k: self._promise(rows, k, tried) for k in range(1, min(2 * tried[-1], self.most) + 1)}
        best = max(promises, key=promises.__getitem__)
        measured = self.measured(rows, used)
        if measured and best not in tried and promises[best] > MARGIN * self.gain(rows, used):
            return best
        if measured < SURE:
            return 1
        near = [k for k in (1, used + 1, 1, used - 1) if k != used and 1 <= k <= self.most]
        return near[self.trials % len(near)] if near and self.rested >= REST else None

    def _promise(self, rows: int, heads_used: int, tried: Sequence[int]) -> float:
        """Gain as measured, or with a guess of the cost from the next smaller number that was tried."""
        below = max(k for k in tried if k <= heads_used)
        cost = self.cost(rows, below) or 1.0
        guess = cost + FURTHER * (heads_used - below) * (cost - 1) / max(below - 1, 1)
        return self.tokens(heads_used) / guess


class Adaptive:
    """Chooses `heads_used` for every next forward of one batch.

    Attributes:
        used: the number of heads in use; at first, for the drafts after the prompts.
    """

    def __init__(self, known: Experience, rows: int, clock: Callable[[], float]) -> None:
        self.known, self.rows, self.clock = known, rows, clock
        self.used = known.best(rows)
        self.tried: int | None = None
        self.seconds: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        """Heads used -> what the latest forwards took."""
        self.pace = 0.0
        """Seconds a token of the heads in use when the trial began."""
        self.last = clock()

    def start(self) -> None:
        """A step begins now. Without this call it begins where the last one ended."""
        self.last = self.clock()

    def next(self, verified: int, drafted: int, accepted: Sequence[int], left: int) -> int:
        """Record a step that verified the drafts of `verified` heads and drafted with `drafted`; returns how many
        heads are to draft in the next.

        Args:
            accepted: tokens that became certain in each row.
            left: most tokens that any row still waits for; without enough of them no trial begins.
        """
        known, now = self.known, self.clock()
        seconds, self.last = now - self.last, now
        known.observe(verified, accepted)
        known.rested += 1
        if len(accepted) != self.rows:
            self.rows, self.tried = len(accepted), None
            self.seconds.clear()
            self.used = known.best(self.rows)
            return self.used
        if verified == drafted:  # otherwise it was a step of neither
            self.seconds[drafted].append(seconds)
        if self.tried:
            if verified == drafted or (_size(self.rows), self.tried) in known.costs:  # else it made what is made once
                known.debt += seconds - sum(accepted) / self.rows * self.pace
            return self._try(drafted)
        known.debt = max(known.debt - SHARE * seconds, 0.0)
        if known.rested % TRIAL == 0:  # looking takes time as well
            self.used = known.best(self.rows, self.used)
            allowed = known.debt == 0 or not known.measured(self.rows, self.used)  # another size's cost may be far off
            if allowed and left >= 4 * TRIAL and len(self.seconds[self.used]) >= TRIAL:
                self._begin(known.to_try(self.rows, self.used))
        return self.tried or self.used

    def _begin(self, tried: int | None) -> None:
        if tried:
            self.tried, self.known.trials = tried, self.known.trials + 1
            self.seconds[tried].clear()
            self.pace = median(self.seconds[self.used]) / self.known.tokens(self.used)

    def _try(self, drafted: int) -> int:
        """Go on with a trial, which ends with the better of the two in use and the step back, if it takes one."""
        assert self.tried
        if drafted == self.tried:
            if len(self.seconds[drafted]) < TRIAL:
                return drafted
            ratio = median(self.seconds[drafted]) / median(self.seconds[self.used])
            self.known.learn(self.rows, self.used, drafted, ratio)
            self.used = self.known.best(self.rows, self.used)
        if drafted == self.used or drafted != self.tried:
            self.tried, self.known.rested = None, 0
        return self.used


def _size(rows: int) -> int:
    """Sizes of batches that count as one: 1, 2, 3 and 4, 5 to 8 rows, .."""
    return (rows - 1).bit_length()
