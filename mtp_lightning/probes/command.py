"""`mtp evaluate induction | polynomial | star-graph | execution | pairs`: the probes on any checkpoint."""

import json as json_module
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mtp_lightning.errors import InputError
from mtp_lightning.files import check_json, check_out, write_text
from mtp_lightning.ranges import check_value

if TYPE_CHECKING:
    from mtp_lightning.checkpoints.files import LoadedModel
    from mtp_lightning.data.tasks.task import Task

UNSEEN = 1
"""Seed of stories that the corpus, which has seed 0, does not have."""


def induction_command(
    ckpt: str,
    stories: str = "generated",
    separator: str | None = None,
    count: int = 100,
    length: int = 32,
    out: str | None = None,
    json: str | None = None,
) -> None:
    """Ask a model to copy two-token names and repeated random tokens, and find the attention heads that do it.

    Args:
        ckpt: Checkpoint, or a file of `mtp export`, or the folder of a run, of which the newest checkpoint is taken.
        stories: Text file or folder with stories; `generated` for those of the platform's own generator, `none` for no
            names.
        separator: What separates stories in a text file; without it a file is a story.
        count: Stories with names.
        length: Tokens of a copy of random tokens.
        out: Folder for heads.png, a heat map of the attention heads.
        json: File to write the numbers to as well.
    """
    import numpy as np

    from mtp_lightning.data.tokens.token_bytes import token_texts
    from mtp_lightning.probes.pictures import heat_map
    from mtp_lightning.probes.suite import (
        TEXTS_A_STORY,
        CopyLength,
        InductionSuite,
        measure_induction,
        measure_without,
        prepare_names,
        prepare_repeated,
    )

    check_json(json, ckpt=ckpt, stories=stories, out=out)
    _check_least("count", count)
    check_value("length", length, CopyLength)
    if separator is not None and stories in ("generated", "none"):
        raise InputError(f"separator is '{separator}': it is of a file, and stories is '{stories}'")
    if out is not None:
        check_out(Path(out))
    loaded = _load(ckpt)
    vocab_size = loaded.model.config.vocab_size
    named = {}
    if stories != "none":
        texts = _texts(stories, separator, TEXTS_A_STORY * count)
        every = np.ones(vocab_size, dtype=np.int64)  # a checkpoint does not say which tokens it has seen
        context, begin = loaded.context or 1024, loaded.begin_ids
        named = {"any": prepare_names(texts, loaded.tokenizer, every, count, context, begin)["any"]}
    tokens = [*range(vocab_size)]
    if loaded.text_tokenizer is not None:  # special tokens are in no text
        tokens = [i for i, text in enumerate(token_texts(loaded.text_tokenizer)) if text is not None]
    repeated = prepare_repeated(loaded.model.heads_config, tokens, 32, length, loaded.begin_ids)
    suite = InductionSuite(named, repeated, length, len(loaded.begin_ids))
    with _timed(loaded, "induction"):
        metrics, scores = measure_induction(loaded.model, suite)
        metrics |= measure_without(loaded.model, suite, scores)
    _show(f"induction at step {loaded.step:,}", metrics)
    best = ", ".join(f"{layer} {head} ({_score(scores, layer, head):.2f})" for layer, head in scores.top(3))
    print(f"attention heads with the highest prefix-matching scores: {best}")
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        (Path(out) / "heads.png").write_bytes(heat_map(scores, f"{Path(ckpt).name}, step {loaded.step:,}"))
    _write(json, loaded, metrics)


def polynomial_command(ckpt: str, test_size: int = 2000, json: str | None = None) -> None:
    """Exact-match accuracy on polynomial arithmetic, by the number of operations.

    Args:
        ckpt: Checkpoint, or a file of `mtp export`, or the folder of a run, of which the newest checkpoint is taken.
        test_size: Questions for each number of operations.
        json: File to write the numbers to as well.
    """
    _evaluate_task("polynomial", ckpt, test_size, json)


def star_graph_command(ckpt: str, test_size: int = 2000, json: str | None = None) -> None:
    """Exact-match accuracy of path finding in star graphs, and accuracy at the branch.

    Args:
        ckpt: Checkpoint, or a file of `mtp export`, or the folder of a run, of which the newest checkpoint is taken.
        test_size: Questions.
        json: File to write the numbers to as well.
    """
    _evaluate_task("star_graph", ckpt, test_size, json)


def execution_command(ckpt: str, test_size: int = 500, json: str | None = None) -> None:
    """Exact-match accuracy of predicting what random programs give, or what they were given, by number of operations.

    Args:
        ckpt: Checkpoint, or a file of `mtp export`, or the folder of a run, of which the newest checkpoint is taken.
        test_size: Questions for each number of operations.
        json: File to write the numbers to as well.
    """
    _evaluate_task("execution", ckpt, test_size, json)


def pairs_command(
    ckpt: str, shards: str | None = None, split: Literal["train", "validation"] = "validation", count: int = 1000,
    json: str | None = None,
) -> None:  # fmt: skip
    """Share of pairs whose whole answer greedy decoding would write, and the loss of the answers.

    Args:
        ckpt: Checkpoint, or a file of `mtp export`, or the folder of a run, of which the newest checkpoint is taken.
        shards: Folder of shards of pairs, as `mtp data prepare --kind pairs` makes them (needed).
        split: Which side of it.
        count: Pairs, the first of the split.
        json: File to write the numbers to as well.
    """
    from mtp_lightning.data.tokens.heldout import heldout_pairs
    from mtp_lightning.data.tokens.verify import open_store
    from mtp_lightning.data.tokens.vocabulary import can_read
    from mtp_lightning.probes.exact_match import answer, answer_loss

    if shards is None:
        raise InputError("--shards is missing: a folder of pairs, as `mtp data prepare OUT --kind pairs` makes one")
    check_json(json, ckpt=ckpt, shards=shards)
    _check_least("count", count)
    loaded = _load(ckpt)
    store = open_store(Path(shards), split)
    if not can_read(loaded.tokenizer, store.meta.tokenizer_fingerprint):
        raise InputError(f"shards: '{shards}' was made with another tokenizer than the model's")
    examples = heldout_pairs(store, count, loaded.context)
    with _timed(loaded, "pairs"):
        metrics = {"exact": answer(loaded.model, examples).accuracy, "loss": answer_loss(loaded.model, examples)}
    _show(f"pairs at step {loaded.step:,}, {len(examples.lengths):,} of the {split} split", metrics)
    _write(json, loaded, metrics)


def _evaluate_task(name: str, ckpt: str, test_size: int, json: str | None) -> None:
    import numpy as np

    from mtp_lightning.data.tasks.known_tasks import task_from_state
    from mtp_lightning.probes.exact_match import exact_match

    check_json(json, ckpt=ckpt)
    _check_least("test_size", test_size)
    loaded = _load(ckpt)
    if loaded.task is None or loaded.task["name"] != name:
        trained = "text or other data" if loaded.task is None else f"'{loaded.task['name']}'"
        raise InputError(f"'{loaded.path}' was trained on {trained}, not on '{name}': its tokens mean something else")
    task: Task = task_from_state(loaded.task)
    sets = task.test_sets(test_size)
    with _timed(loaded, name):
        metrics = exact_match(loaded.model, task, sets)
    for name_of_set, examples in sets.items():
        metrics |= {f"{name_of_set}/{who}": score for who, score in task.baselines(name_of_set, examples).items()}
    _show(f"{name} at step {loaded.step:,}, {test_size:,} questions a test set", metrics)
    example = next(iter(sets.values())).take(np.array([0]))
    print(f"a question with its answer: {task.text(example.tokens[0, : example.lengths[0]])}")
    _write(json, loaded, metrics)


def _load(ckpt: str) -> "LoadedModel":
    from mtp_lightning.checkpoints.files import load_model
    from mtp_lightning.checkpoints.select import find_checkpoint

    return load_model(find_checkpoint(Path(ckpt)))


def _texts(stories: str, separator: str | None, count: int) -> list[str]:
    from itertools import islice

    from mtp_lightning.data.corpora.documents import documents
    from mtp_lightning.data.corpora.source import SourceConfig
    from mtp_lightning.data.stories.generator import stories as generated

    if stories == "generated":
        return list(generated(count, seed=UNSEEN))
    source = SourceConfig(kind="text", path=stories, separator=separator)
    return [document.text for document in islice(documents(source), count)]


@contextmanager
def _timed(loaded: "LoadedModel", what: str) -> Iterator[None]:
    import sys

    import torch

    parameters = sum(p.numel() for p in loaded.model.parameters())
    print(f"measuring '{loaded.path}' ({parameters:,} parameters, n_future {loaded.model.n_future})", file=sys.stderr)
    start = time.perf_counter()
    with torch.no_grad():
        yield
    print(f"{what}: {time.perf_counter() - start:.1f} s", file=sys.stderr)


def _score(scores: Any, layer: str, head: int) -> float:
    return float(scores.prefix_matching[scores.layers.index(layer), head])


def _check_least(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} is {value}: it has to be at least 1")


def _show(title: str, metrics: Mapping[str, float]) -> None:
    width = max(map(len, metrics)) + 2
    print(title)
    for name, value in metrics.items():
        print(f"  {name:<{width}}{value:8.4f}")


def _write(json: str | None, loaded: "LoadedModel", metrics: Mapping[str, float]) -> None:
    if json is not None:
        content = {"ckpt": str(loaded.path), "step": loaded.step, "metrics": dict(metrics)}
        write_text(Path(json), json_module.dumps(content, indent=1) + "\n")
