"""Validation by the length of documents: the same windows as without, told apart by where their middle lies."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtp_lightning.data import SourceConfig, TokenDataModule
from mtp_lightning.data.corpora.source import PYTHON_STDLIB
from mtp_lightning.data.mixtures.lengths import length_classes
from mtp_lightning.data.mixtures.sources import MixtureSource
from mtp_lightning.errors import InputError


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(1, 12))
def test_every_window_is_in_the_class_of_its_document(lengths: list[int], context: int) -> None:
    ends = np.cumsum(np.array(lengths) + 1)  # each document is followed by its end
    starts = np.arange(0, int(ends[-1]) - context + 1, context)
    mine = [lengths[next(i for i, end in enumerate(ends) if start + context // 2 < end)] for start in starts]
    if len({*mine}) < 3:
        with pytest.raises(InputError, match=f"lie in documents of {len({*mine})} different lengths"):
            length_classes(starts, context, ends - lengths - 1, int(ends[-1]))
        return
    classes = length_classes(starts, context, ends - lengths - 1, int(ends[-1]))
    assert [one.name for one in classes] == ["short", "medium", "long"]
    assert sorted(np.concatenate([one.windows for one in classes]).tolist()) == [*range(len(starts))]
    least = -1
    for one in classes:
        found = [mine[i] for i in one.windows]
        assert found
        assert least < min(found)
        assert max(found) == one.most_tokens
        least = one.most_tokens


def test_classes_are_thirds_where_no_document_is_divided() -> None:
    starts = np.cumsum([i + 1 for i in range(90)]) - np.arange(1, 91)
    classes = length_classes(starts, 1, starts, int(starts[-1]) + 91)
    assert [len(one.windows) for one in classes] == [30, 30, 30]
    assert [one.most_tokens for one in classes] == [29, 59, 90]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lengths") / "text.txt"
    path.write_text("\n".join(f"{i} " + "abc " * (i % 7) ** 2 for i in range(80)), encoding="utf-8")
    return path


def ready(corpus: Path, rank: int = 0, ranks: int = 1, **changes: Any) -> TokenDataModule:
    source = SourceConfig(kind="text", path=str(corpus), separator="\n")
    arguments = {"source": source, "context": 16, "batch_size": 4, "validation_fraction": 0.5, "val_windows": 30}
    data = TokenDataModule(directory=str(corpus.parent / "cache"), **(arguments | changes))
    data.prepare_data()
    data.setup("validate")
    data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks, accumulate_grad_batches=1)  # type: ignore[assignment]
    return data


def test_windows_are_those_of_before_each_said_to_be_of_its_class(corpus: Path) -> None:
    plain, apart = ready(corpus), ready(corpus, val_by_length=True)
    before = torch.cat([batch["tokens"] for batch in plain.val_dataloader()]).tolist()
    names, after = [], []
    for batch in apart.val_dataloader():
        names.append(batch["source"])
        after += batch["tokens"].tolist()
    assert sorted(after) == sorted(before)
    assert [*dict.fromkeys(names)] == ["short", "medium", "long"]
    assert sum(len(one.windows) for one in apart.lengths) == 30
    longest = max(len(text) for text in corpus.read_text().split("\n"))
    assert apart.lengths[-1].most_tokens <= longest
    split = [[*ready(corpus, rank, 2, val_by_length=True).val_dataloader()] for rank in range(2)]
    assert [one["source"] for one in split[0]] == [one["source"] for one in split[1]]  # or ranks would wait for ever


def test_it_is_of_one_corpus_of_text(corpus: Path) -> None:
    pairs = corpus.parent / "pairs.jsonl"
    pairs.write_text("".join(f'{{"prompt": "Who is {i}? ", "completion": "Ann."}}\n' for i in range(60)))
    source = SourceConfig(kind="pairs", path=str(pairs))
    with pytest.raises(InputError, match=r"data\.val_by_length is for one corpus of text, and this is a mixture"):
        ready(corpus, source=PYTHON_STDLIB, mixture=[MixtureSource(source)], val_by_length=True)
    with pytest.raises(InputError, match=r"data\.val_by_length is for one corpus of text, and this is one of pairs"):
        ready(corpus, source=source, val_by_length=True)
    shards = ready(corpus, source=source).shards
    with pytest.raises(InputError, match=r"data\.val_by_length is for text, and '.*' holds pairs"):
        ready(corpus, source=SourceConfig(kind="shards", path=str(shards)), val_by_length=True)
    with pytest.raises(InputError, match=r"data\.val_by_length: the 1 validation windows lie in documents of 1 diff"):
        ready(corpus, val_windows=1, val_by_length=True)
