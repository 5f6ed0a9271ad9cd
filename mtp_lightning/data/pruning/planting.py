"""A corpus of which some documents were made worse, and the list of these."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mtp_lightning.data.corpora.documents import documents
from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.data.preparing.chunks import split_position, split_threshold
from mtp_lightning.data.preparing.folders import temporary_sibling, writing_to
from mtp_lightning.data.pruning.corruptions import CORRUPTIONS, corrupt
from mtp_lightning.data.pruning.selection import random_scores
from mtp_lightning.data.tokens.prepare import ShardSettings
from mtp_lightning.errors import InputError

CORPUS, PLANTED = "corpus.jsonl", "planted.txt"
_WRITES = "out: cannot write"


def plant(
    out: Path, source: SourceConfig, settings: ShardSettings, fraction: float, rate: float, seed: int
) -> list[dict[str, Any]]:
    """Makes the folder `out`; the corruptions take turns, and one that finds nothing to edit leaves it to the next. A
    smaller fraction's documents are among a larger one's, and 0 is the sound twin. All documents are in memory.

    Returns:
        A row for each corruption.

    Raises:
        InputError: too few documents that can be corrupted; nothing can be written there.
    """
    found = list(documents(source))
    texts, names = [document.text for document in found], [f"{CORPUS}#{i}" for i in range(len(found))]
    positions = [split_position(name, settings.split_seed) for name in names]
    threshold = split_threshold(settings.validation_fraction, min(positions), max(positions))
    training = np.flatnonzero(np.array(positions) >= threshold)
    wanted = max(1, round(fraction * len(training))) if fraction else 0
    chance = random_scores(names, seed, "planted")
    planted: dict[int, dict[str, Any]] = {}
    for i in sorted(training.tolist(), key=lambda i: (chance[i], i)):
        if len(planted) == wanted:
            break
        turn = len(planted) % len(CORRUPTIONS)
        kinds = [*CORRUPTIONS][turn:] + [*CORRUPTIONS][:turn]
        tried = ((kind, corrupt(kind, texts[i], names[i], seed, rate)) for kind in kinds)
        kind, made = next(((kind, made) for kind, made in tried if made.edits), ("", None))
        if made is not None:
            texts[i], planted[i] = made.text, {"name": names[i], "corruption": kind, "edits": made.edits}
    if len(planted) < wanted:
        raise InputError(
            f"fraction is {fraction}: {wanted} of {len(training)} training documents, and {len(planted)} of them have "
            "anything to corrupt: the corruptions are of Python"
        )
    with temporary_sibling(out, _WRITES) as folder, writing_to(out, _WRITES):
        rows = (
            {"text": text, "name": document.name, "corruption": planted.get(i, {}).get("corruption")}
            for i, (text, document) in enumerate(zip(texts, found))
        )
        _write(folder / CORPUS, rows)
        _write(folder / PLANTED, (planted[i] for i in sorted(planted)))
        folder.rename(out)
    of_kind = {kind: [row for row in planted.values() if row["corruption"] == kind] for kind in CORRUPTIONS}
    return [
        {"corruption": kind, "documents": len(rows), "edits": sum(row["edits"] for row in rows)}
        for kind, rows in of_kind.items()
    ]


def _write(path: Path, rows: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
