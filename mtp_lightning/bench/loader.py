"""What a batch costs to read, as `TokenDataModule` reads it: windows of token shards, in the training process."""

import itertools
import random
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from mtp_lightning.bench.train_contenders import Workload

BATCHES, FIRST = 60, 10
"""Read, and of these not counted."""
TOKENS, DOCUMENT = 2**21, 2000
"""Tokens on disk, at least, and of a document."""


def seconds_a_batch(workload: Workload, n_future: int, by_cpu: bool) -> float:
    """The median of batches of (B, T + n), their windows in the order of training."""
    from mtp_lightning.data.corpora.documents import Document
    from mtp_lightning.data.loader import BatchLoader, TrainingWindows, read_windows
    from mtp_lightning.data.tokens.prepare import ShardSettings, prepare_shards
    from mtp_lightning.data.tokens.store import TokenStore
    from mtp_lightning.data.tokens.tokenizer import ByteTokenizer
    from mtp_lightning.data.tokens.windows import TrainingOrder

    draw = random.Random(0)
    count = max(TOKENS, 8 * workload.tokens) // DOCUMENT
    documents = [Document(str(i), "".join(draw.choices("abcdefgh ", k=DOCUMENT))) for i in range(count)]
    clock = time.process_time if by_cpu else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "shards"
        prepare_shards(directory, lambda: iter(documents), ByteTokenizer(), {}, ShardSettings())
        store = TokenStore(directory, "train")
        read = partial(read_windows, store, TrainingOrder(len(store), workload.context, n_future, seed=0))
        ends = [clock() for _ in BatchLoader(TrainingWindows(read, workload.batch), BATCHES)]
    return median(late - early for early, late in itertools.pairwise(ends[FIRST:]))


def loader_cost(seconds: float, workload: Workload, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """`ms` of a batch; `share_of_step`, of the quickest step of ours in `rows`, where there is one."""
    ours = [workload.tokens / row["tokens_per_second"] for row in rows if row["contender"] == "ours"]
    return {"ms": 1e3 * seconds} | ({"share_of_step": seconds / min(ours)} if ours else {})
