"""Batches of windows out of a token store: which rows of a global batch are this rank's, and what they hold."""

import numpy as np
import torch
from torch.utils.data import Dataset

from mtp_lightning.data.loader import Batch
from mtp_lightning.data.tokens.order import TrainingOrder, ValidationOrder
from mtp_lightning.data.tokens.store import TokenStore


class TrainingWindows(Dataset[Batch]):
    """Global batch b is the samples b * batch_size ...; rank r of w has every w-th row of it, from row r on."""

    def __init__(
        self, store: TokenStore, order: TrainingOrder, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        assert batch_size % world_size == 0
        self.store, self.order = store, order
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def __getitem__(self, index: int) -> Batch:
        samples = np.arange(index * self.batch_size + self.rank, (index + 1) * self.batch_size, self.world_size)
        return read_windows(self.store, self.order.starts(samples), self.order.context + self.order.horizon)


class ValidationWindows(Dataset[Batch]):
    """Like `TrainingWindows`, ending with a smaller batch. All ranks have equally many rows, for sharded models hang
    otherwise: where the last batch does not divide, some get a row that the loss mask takes out again."""

    def __init__(
        self, store: TokenStore, order: ValidationOrder, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        assert batch_size % world_size == 0
        self.store, self.order = store, order
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def __len__(self) -> int:
        return -(-self.order.n_windows // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        n_windows = self.order.n_windows
        n_rows = min(self.batch_size, n_windows - index * self.batch_size)
        padded = -(-n_rows // self.world_size) * self.world_size
        samples = index * self.batch_size + np.arange(self.rank, padded, self.world_size)
        starts = self.order.starts(np.minimum(samples, n_windows - 1))
        batch = read_windows(self.store, starts, self.order.context + self.order.horizon)
        if padded > n_rows:
            real_B = torch.from_numpy(samples < n_windows)
            batch["loss_mask"] = real_B[:, None].expand_as(batch["tokens"]).contiguous()
        return batch


def read_windows(store: TokenStore, starts: np.ndarray, length: int) -> Batch:
    tokens = np.stack([store.read(int(start), length) for start in starts])
    documents = np.stack([store.document_ids(int(start), length) for start in starts])
    return {"tokens": torch.from_numpy(tokens), "documents": torch.from_numpy(documents)}
