"""What `mtp data prune` is asked for."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from mtp_lightning.errors import InputError, did_you_mean
from mtp_lightning.ranges import Count, Fraction, Kept, Range, Seed, check_value

BY = ("length", "random", "loss", "loss_head_1", "gap", "scip", "prototypes")
CLUSTERED = ("scip", "prototypes")
ALPHA, CLUSTERS = 0.8, 100
"""What is taken where nothing is said."""
Share = Annotated[float, Range(least=0, most=1)]


@dataclass(frozen=True)
class Choice:
    """What is left out.

    Raises:
        InputError: no such score; a number that cannot be, or that it does not go by; a checkpoint that is missing.
    """

    by: str
    fraction: float
    of: Literal["bytes", "documents"]
    ckpt: str | None
    alpha: float
    clusters: int
    seed: int
    first_tokens: int | None
    embedder: str | None = None
    scores: str | None = None
    """File of scores that were measured before."""

    def __post_init__(self) -> None:
        if self.by not in BY and not re.fullmatch(r"loss_head_[1-9]\d*", self.by):
            raise InputError(
                f"by is '{self.by}': it has to be one of length, random, loss, loss_head_<i>, gap, scip and prototypes"
                f"{did_you_mean(self.by, BY)}"
            )
        for name, hint in {"fraction": Fraction, "alpha": Share, "clusters": Kept, "seed": Seed,
                           "first_tokens": Count | None}.items():  # fmt: skip
            check_value(name, getattr(self, name), hint)
        self._check_unused()
        if self.embedder is not None and (self.by not in CLUSTERED or self.ckpt is not None):
            why = (
                "--ckpt is given, too: give one of them" if self.by in CLUSTERED else f"--by {self.by} does not ask it"
            )
            raise InputError(f"embedder: an encoder tells the places of documents for scip and prototypes, and {why}")
        if self.scores is not None:
            self._check_scores()
        elif self.measures and self.ckpt is None and self.embedder is None:
            raise InputError(f"ckpt is missing: --by {self.by} asks a model, as --ckpt runs/small")
        if not self.measures and self.ckpt is not None:
            raise InputError(f"ckpt: --by {self.by} asks no model: leave it out")

    def _check_unused(self) -> None:
        unused = {
            "alpha": self.alpha != ALPHA and self.by != "scip",
            "clusters": self.clusters != CLUSTERS and self.by not in CLUSTERED,
            "first_tokens": self.first_tokens is not None and not self.measures,
        }
        for name in (name for name, is_unused in unused.items() if is_unused):
            raise InputError(f"{name} is {getattr(self, name)}, and --by {self.by} does not go by it: leave it out")

    def _check_scores(self) -> None:
        if not self.measures or self.by in CLUSTERED:
            raise InputError(f"scores: losses are taken from it, and --by {self.by} does not go by one: leave it out")
        for name in ("ckpt", "first_tokens"):
            if getattr(self, name) is not None:
                raise InputError(f"scores: what was measured before is of its own {name}: leave --{name} out")

    @property
    def measures(self) -> bool:
        return self.by not in ("length", "random")

    @property
    def column(self) -> str:
        """The score that it goes by, where it is one."""
        return "loss_head_1" if self.by == "loss" else self.by
