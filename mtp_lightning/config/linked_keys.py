"""Keys that follow from other keys: the horizon is written once, as is the vocabulary, as is the seed."""

from collections.abc import Callable, Sequence
from typing import Any

SEED_KEY = "seed_everything"


def _horizon(n_future: int, offsets: Sequence[int] | None) -> int:
    """Tokens that a window carries after its inputs. What is wrong with the two, `HeadsConfig` says."""
    return max(offsets) if offsets else max(1, n_future)


LINKS: tuple[tuple[tuple[str, ...], str, Callable[..., Any] | None], ...] = (
    (("model.heads.n_future", "model.heads.offsets"), "data.init_args.horizon", _horizon),
    (("model.backbone.vocab_size",), "data.init_args.vocab_size", None),
    ((SEED_KEY,), "data.init_args.seed", None),
)
"""(keys, the key that follows from them, how; None: it is the same)."""
