"""What reads training windows, with infilling."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from mtp_lightning.data.loader import Batch, Read
from mtp_lightning.data.tokens.tokenizer import Tokenizer
from mtp_lightning.data.tokens.windows import HORIZON_RESERVE
from mtp_lightning.data.transforms.infilling import InfillingConfig, WindowTransform, needed_sentinels
from mtp_lightning.objective.targets import SENTINELS
from mtp_lightning.shapes import Int


def horizon_of_plain(config: InfillingConfig | None, horizon: int) -> int:
    """Tokens after its inputs that a window has to have before it is transformed: what becomes of it depends on all of
    them, so they are the same whatever the heads are."""
    return horizon if config is None or config.level == "document" else max(horizon, HORIZON_RESERVE)


def reading(
    read: Read, config: InfillingConfig | None, tokenizer: Tokenizer, context: int, horizon: int, seed: int
) -> Read:
    """
    Args:
        read: of windows with `horizon_of_plain`; at document level, of a corpus that is transformed.
        horizon: of the windows to train on.
        seed: of what is drawn.
    """
    if config is None:
        return read
    if config.level == "context":
        read = partial(_transformed, read, WindowTransform(config, tokenizer, context, seed), context + horizon)
    return read if config.cross_sentinels else partial(_marked, read, needed_sentinels(tokenizer)[:3])


def _transformed(read: Read, transform: WindowTransform, length: int, samples: Int[np.ndarray, "B"]) -> Batch:
    """Windows, transformed and then cut to `length`."""
    plain = read(samples)
    rows = zip(samples.tolist(), plain["tokens"].numpy(), plain["documents"].numpy())
    tokens, documents = (np.stack(made)[:, :length] for made in zip(*(transform(*row) for row in rows)))
    return {"tokens": torch.from_numpy(tokens), "documents": torch.from_numpy(documents)}


def _marked(read: Read, ids: Sequence[int], samples: Int[np.ndarray, "B"]) -> Batch:
    """Windows that say where one of these ids stands: no head looks across it."""
    batch = read(samples)
    return batch | {SENTINELS: torch.isin(batch["tokens"], torch.tensor(ids))}
