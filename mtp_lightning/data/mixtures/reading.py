"""Windows of a mixture: training's in the mixture's order, validation's one source after the other."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from mtp_lightning.data.loader import Batch, Read, ValidationWindows
from mtp_lightning.data.mixtures.order import MixtureOrder
from mtp_lightning.objective.targets import SOURCE
from mtp_lightning.shapes import Int


def read_mixture(reads: Sequence[Read], order: MixtureOrder, masked: bool, samples: Int[np.ndarray, "B"]) -> Batch:
    """The windows of these samples, each read by its source; with the first three arguments bound it is a `Read`.

    Document ids are those of the sources; equal ids in two rows mean nothing.

    Args:
        masked: whether some source has a loss mask, so that all of them need one.
    """
    sources, numbers = order.locate(samples)
    batch: Batch = {}
    for source in np.unique(sources):
        rows = torch.from_numpy(np.flatnonzero(sources == source))
        found = reads[source](numbers[sources == source])
        if masked and "loss_mask" not in found:
            found["loss_mask"] = torch.ones_like(found["tokens"], dtype=torch.bool)
        for key, value in found.items():
            if key not in batch:
                batch[key] = value.new_empty(len(samples), *value.shape[1:])
            batch[key][rows] = value
    return batch


def read_some(read: Read, numbers: Int[np.ndarray, "N"], samples: Int[np.ndarray, "B"]) -> Batch:
    """Sample g is window numbers[g]; with the first two arguments bound it is a `Read`."""
    return read(numbers[samples])


class SourceBatches(Dataset[Batch]):
    """The validation batches of each source, or class of documents, one after the other; each says whose it is, under
    `SOURCE`."""

    def __init__(self, windows: Mapping[str, ValidationWindows]) -> None:
        self._windows = windows
        self._places = [(name, i) for name, batches in windows.items() for i in range(len(batches))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Batch:
        name, number = self._places[index]
        return {**self._windows[name][number], SOURCE: name}
