"""Keys that follow from other keys: the horizon is written once, as is the vocabulary, as is the seed."""

from collections.abc import Callable, Sequence
from typing import Any

from mtp_lightning.config.keys.key_origins import KeyOrigins
from mtp_lightning.errors import InputError

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


def refuse_linked_keys(config: Any, origins: KeyOrigins) -> None:
    """A value of one's own for such a key would be dropped without a word. The value that it has anyway is fine: the
    configuration that a run leaves in its folder has every key.

    Args:
        config: parsed.

    Raises:
        InputError: another value.
    """
    for sources, target, _ in LINKS:
        given = origins.find(target)
        if given is None or "${" in str(given.value) or target not in config or given.value == config[target]:
            continue
        raise InputError(
            f"{target} is {given.value}, and follows from {' and '.join(sources)}, which make it {config[target]}: "
            f"leave it out, and set {sources[0]}"
        )
