"""What was pruned, and why: a Parquet file with a row for each document, and figures against documents that are known
to be bad."""

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtp_lightning.data.corpora.kept import FORMAT, KeptHeader
from mtp_lightning.data.pruning.gate import GAP
from mtp_lightning.data.pruning.selection import auc
from mtp_lightning.data.pruning.survey import Survey
from mtp_lightning.errors import InputError
from mtp_lightning.files import DamagedError, as_record, parse_json, read_state
from mtp_lightning.shapes import Bool, Float

HEADER = "mtp_lightning.pruning"
"""Entry of the Parquet file's metadata: the first line of the list."""
VALIDATES = "validation"

Scores = Mapping[str, Float[np.ndarray, "n"]]
Dropped = Mapping[str, Bool[np.ndarray, "n"]]


def parquet(corpus: Survey, scores: Scores, dropped: Dropped, header: Mapping[str, Any]) -> bytes:
    """Name, bytes, whether a document is kept, the reason where it is not, and all that was measured: nothing of
    validation documents, whose reason to be kept is `validation`.

    Args:
        scores: of the training documents.
        dropped: reason -> which of them.
    """
    import pyarrow
    import pyarrow.parquet

    places = np.flatnonzero(corpus.trains)
    reasons = np.where(corpus.trains, "", VALIDATES).astype(object)
    for reason, which in dropped.items():
        reasons[places[which]] = reason
    columns: dict[str, Any] = {
        "name": [name.encode("utf-8", "backslashreplace").decode() for name in corpus.names],
        "bytes": corpus.n_bytes,
        "kept": np.isin(reasons, ["", VALIDATES]),
        "reason": reasons.tolist(),
    }
    for name, values in scores.items():
        column = np.full(len(corpus.names), np.nan)
        column[places] = values
        columns[name] = pyarrow.array(column, mask=np.isnan(column))
    table = pyarrow.table(columns).replace_schema_metadata({HEADER: json.dumps(header)})
    out = io.BytesIO()
    pyarrow.parquet.write_table(table, out)
    return out.getvalue()


def read_scores(path: str, corpus: Survey) -> tuple[Scores, dict[str, Any]]:
    """(losses, and what is made of them, of the training documents; how they were made) from a file of `parquet`.

    Raises:
        InputError: no such file, or one of another corpus, split or version.
    """
    import pyarrow
    import pyarrow.parquet

    file = Path(path).expanduser()
    try:
        table = pyarrow.parquet.read_table(file)
    except FileNotFoundError:
        raise InputError(f"scores: there is no file '{path}'; `mtp data prune` writes one beside its list") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"scores: '{path}' is no Parquet file that can be read: {error}") from error
    held = (table.schema.metadata or {}).get(HEADER.encode())
    try:
        header = as_record(KeptHeader, file, {} if held is None else parse_json(file, held.decode()))
        if header.format != FORMAT:
            raise DamagedError(file, "it is of another version")
    except (DamagedError, UnicodeDecodeError) as error:
        raise InputError(f"scores: '{path}' is no file of scores that `mtp data prune` wrote: {error}") from error
    split = (header.validation_fraction, header.split_seed)
    wanted = (corpus.settings.validation_fraction, corpus.settings.split_seed)
    if (header.corpus, split, table.num_rows) != (corpus.corpus, wanted, len(corpus.names)):
        raise InputError(
            f"scores: '{path}' is of {header.documents:,} documents with validation_fraction {split[0]} and split_seed "
            f"{split[1]}: it is of another corpus, or of another split, than these {len(corpus.names):,} with "
            f"{wanted[0]} and {wanted[1]}"
        )
    losses = [name for name in table.column_names if name.startswith("loss_") or name == GAP]
    if not losses:
        raise InputError(f"scores: '{path}' has no losses: it is of --by {header.made_by.get('by')}")
    return {name: table[name].to_numpy().astype(float)[corpus.trains] for name in losses}, header.made_by


def read_planted(path: str, corpus: Survey) -> Bool[np.ndarray, "n"]:
    """Which training documents a list of `mtp data plant` names.

    Raises:
        InputError: no such list, or one of another corpus.
    """
    file = Path(path).expanduser()
    try:
        text = read_state(file, most=2**40)
        if text is None:
            raise InputError(f"planted: there is no file '{path}'")
        rows = [parse_json(file, line) for line in text.split("\n") if line]
    except DamagedError as error:
        raise InputError(f"planted: {error}") from error
    if not rows or not all(isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows):
        raise InputError(f"planted: '{path}' has to have rows with a 'name', as `mtp data plant` writes them")
    named = {row["name"] for row in rows}
    found = np.array([name in named for name, trains in zip(corpus.names, corpus.trains) if trains])
    if found.sum() != len(named):
        raise InputError(
            f"planted: '{path}' names {len(named):,} documents, and {found.sum():,} of them are training documents of "
            "this corpus: it is of another corpus, or of another split"
        )
    if found.all():
        raise InputError(f"planted: '{path}' names every training document: there is nothing to tell them from")
    return found


def against_planted(
    planted: Bool[np.ndarray, "n"], name: str, dropped: Bool[np.ndarray, "n"], score: Float[np.ndarray, "n"] | None
) -> dict[str, Any]:
    """A row: of what is dropped, the share that is planted (`precision`; by chance it is `planted`), of what is planted
    the share that is dropped (`recall`), and how often a planted document scores above another (`auc`)."""
    found = int((planted & dropped).sum())
    known = None if score is None else auc(score[planted], score[~planted])
    return {
        "by": name,
        "precision": round(found / int(dropped.sum()), 4) if dropped.any() else None,
        "planted": round(float(planted.mean()), 4),
        "recall": round(found / int(planted.sum()), 4),
        "auc": None if known is None or math.isnan(known) else round(known, 4),
    }
