"""Prompts out of the validation split."""

import numpy as np
import torch
from torch import Tensor

from mtp_lightning.data.store import TokenStore
from mtp_lightning.data.windows import prompt_starts
from mtp_lightning.errors import InputError


def heldout_prompts(store: TokenStore, count: int, length: int) -> list[Tensor]:
    """`count` pieces, (length,) int64 each, of the split's documents: always the same, spread over the documents.

    Each lies inside one document where documents are long enough.

    Raises:
        InputError: the split is shorter than a prompt.
    """
    if len(store) < length:
        raise InputError(f"a prompt of {length} tokens is longer than the {store.split} split ({len(store)} tokens)")
    starts = prompt_starts(np.asarray(store.document_starts), len(store), count, length)
    return [torch.from_numpy(store.read(start, length)) for start in starts]
