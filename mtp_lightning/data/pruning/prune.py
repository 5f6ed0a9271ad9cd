"""From a corpus and a choice to what is left out of it, and what there is to say of that."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from mtp_lightning.data.corpora.kept import FORMAT, KeptHeader
from mtp_lightning.data.pruning.clusters import nearest, spherical_kmeans
from mtp_lightning.data.pruning.gate import (
    DISTANCE,
    SMALL,
    Seen,
    corruption_table,
    named_losses,
    passes,
    score_names,
    shown,
    unseen,
)
from mtp_lightning.data.pruning.measuring import Provider, load_provider
from mtp_lightning.data.pruning.options import CLUSTERED, Choice
from mtp_lightning.data.pruning.record import Dropped, Scores, against_planted, read_scores
from mtp_lightning.data.pruning.score_files import Measure, Measuring, What
from mtp_lightning.data.pruning.selection import Documents, drop_by_clusters, drop_highest, random_scores
from mtp_lightning.data.pruning.survey import Survey, sampled
from mtp_lightning.errors import InputError
from mtp_lightning.own_code import given
from mtp_lightning.shapes import Bool

GATE_CHARACTERS = 4000
"""Of a document in the table of corruptions: its first statements that are not longer together."""
GATE_CLUSTERS = 8
_FILES = ("ckpt", "embedder", "scores")
"""Of a choice: where they lie says nothing."""
FAR_OFF = 0.2
"""Of what was asked for: documents go as a whole, and what is left out may be another part of all."""


def scores_of(
    choice: Choice, corpus: Survey, measure: Measure, workers: int, gate_documents: int, force: bool
) -> tuple[Scores, dict[str, Any]]:
    """(all scores of the training documents, what there is to say of how they were made).

    Raises:
        InputError: the model has no such score, or does not see corruptions.
    """
    scores: dict[str, Any] = {"length": corpus.n_bytes[corpus.trains].astype(float)}
    if choice.by == "random":
        scores["random"] = random_scores(corpus.training_names, choice.seed, "pruned")
    if not choice.measures:
        return scores, {}
    if choice.scores is not None:
        known, before = read_scores(choice.scores, corpus)
        _check_known(choice, list(known))
        return scores | dict(known), {key: before.get(key) for key in ("model", "first_tokens")}
    provider = load_provider(choice.ckpt, choice.first_tokens, choice.embedder)
    made_by: dict[str, Any] = {"model": provider.fingerprint}
    what: What = "embed" if choice.by in CLUSTERED else "losses"
    if what == "embed":
        if choice.clusters > (most := len(corpus.training_names)):
            raise InputError(f"clusters is {choice.clusters}, and there are {most} training documents: take fewer")
        if choice.by == "scip":
            table = gate(provider, corpus, gate_documents, choice.seed)
            made_by["gate"] = _verdict(table, choice, force)
    else:
        _check_known(choice, score_names(provider.loss_names))
    ckpt = None if choice.ckpt is None else provider.file
    job = Measuring(ckpt, choice.first_tokens, what, provider.fingerprint, choice.embedder, tuple(given))
    found = measure(job, workers)
    if what == "losses":
        return scores | named_losses(found, provider.loss_names), made_by
    cluster, distance = nearest(found, spherical_kmeans(found, choice.clusters, choice.seed))
    sizes = np.bincount(cluster)[cluster]
    return scores | {"cluster": cluster.astype(float), "cluster_size": sizes.astype(float), DISTANCE: distance}, made_by


def _check_known(choice: Choice, known: Sequence[str]) -> None:
    if choice.column not in known:
        raise InputError(f"by is '{choice.by}', and this model has only {', '.join(known)}")


def gate(
    provider: Provider,
    corpus: Survey,
    count: int,
    seed: int,
    rate: float = 0.3,
    characters: int = GATE_CHARACTERS,
    losses: bool = False,
) -> list[Seen]:
    """The table of corruptions of a corpus: `count` training documents chosen by a hash, and as many others for the
    centroids.

    Args:
        losses: whether losses are looked at, too.
    """
    found = sampled(corpus.training(), corpus.training_names, 2 * count, seed, characters)
    half = (len(found) + 1) // 2
    return corruption_table(found[:half], found[half:], provider, rate, GATE_CLUSTERS, seed, losses)


def _verdict(table: list[Seen], choice: Choice, force: bool) -> dict[str, Any]:
    """
    Raises:
        InputError: what it goes by, sizes of clusters and distances, sees too little, and nobody forces it.
    """
    used = {SMALL: choice.alpha > 0, DISTANCE: choice.alpha < 1}
    blind = [scorer for scorer, asked in used.items() if asked and not passes(table, scorer)]
    passed = not blind
    asked = f"--ckpt {choice.ckpt}" if choice.embedder is None else f"--embedder {choice.embedder}"
    if not passed and not force:
        missed = "; ".join(f"{scorer}: {', '.join(unseen(table, scorer))}" for scorer in blind)
        raise InputError(
            "by is 'scip', and the places that this model gives to documents do not see that a file was made worse "
            f"({missed}; `mtp data corruptions {asked}` shows the table): prune by loss or by length, or give --force"
        )
    return {"passed": passed, "forced": not passed, "rows": [dict(shown(row)) for row in table]}


def choose(choice: Choice, corpus: Survey, scores: Scores) -> Dropped:
    """Reason -> which training documents are left out for it."""
    documents = _documents(choice, corpus)
    if choice.by == "scip":
        cluster = scores["cluster"].astype(int)
        small, far = drop_by_clusters(documents, cluster, scores[DISTANCE], choice.fraction, choice.alpha)
        return {"small cluster": small, "far from its centroid": far}
    if choice.by == "prototypes":
        return {"near its centroid": drop_highest(documents, -scores[DISTANCE], choice.fraction)}
    reason = "random" if choice.by == "random" else f"high {choice.by}"
    return {reason: drop_highest(documents, scores[choice.column], choice.fraction)}


def parts_left_out(choice: Choice, corpus: Survey, scores: Scores, dropped: Dropped) -> dict[str, float]:
    """Reason -> the part of the training documents that is left out for it; a line on standard error for one that is
    far from what was asked for.

    Raises:
        InputError: nothing is left out, or what has no score.
    """
    sizes = _documents(choice, corpus).sizes
    found = {reason: float(sizes[which].sum() / sizes.sum()) for reason, which in dropped.items()}
    asked = f"fraction is {choice.fraction}"
    if not any(found.values()):
        raise InputError(
            f"{asked}: nothing would be left out, as the first to go is at least twice as much: take a larger fraction"
            + (", or --of documents" if choice.of == "bytes" else "")
        )
    if choice.column in scores:
        none = np.isnan(scores[choice.column]) & np.any(list(dropped.values()), axis=0)
        if none.any():
            raise InputError(
                f"{asked}: {none.sum():,} of the documents that would be left out are too short to have a score "
                f"{choice.column}: take a smaller fraction, or another score"
            )
    shares = (choice.alpha, 1 - choice.alpha) if choice.by == "scip" else (1.0,)
    for (reason, part), share in zip(found.items(), shares):
        wanted = share * choice.fraction
        if abs(part - wanted) > FAR_OFF * wanted:
            text = f"{asked}, and {part:.3g} of the {choice.of} are left out as {reason}, for {wanted:.3g}"
            print(f"warning: {text}: documents go as a whole", file=sys.stderr)
    return found


def kept(choice: Choice, corpus: Survey, dropped: Dropped, made_by: Mapping[str, Any]) -> tuple[KeptHeader, list[str]]:
    """(the first line of the list, the names)."""
    out = np.any(list(dropped.values()), axis=0)
    gone = {name for name, is_out in zip(corpus.training_names, out.tolist()) if is_out}
    names = [name for name in corpus.names if name not in gone]
    chosen = {key: value for key, value in asdict(choice).items() if key not in _FILES} | dict(made_by)
    settings = corpus.settings
    header = KeptHeader(
        FORMAT, corpus.corpus, len(corpus.names), len(names), settings.validation_fraction, settings.split_seed, chosen
    )
    return header, names


def figures(choice: Choice, corpus: Survey, dropped: Dropped) -> dict[str, Any]:
    """A row: how much is left out, and of what."""
    out, sizes = np.any(list(dropped.values()), axis=0), corpus.n_bytes[corpus.trains]
    return {
        "by": choice.by,
        **{reason: int(which.sum()) for reason, which in dropped.items()},
        "pruned documents": int(out.sum()),
        "of training documents": len(sizes),
        "pruned bytes": int(sizes[out].sum()),
        "of training bytes": int(sizes.sum()),
        "pruned part": round(float(sizes[out].sum() / sizes.sum() if choice.of == "bytes" else out.mean()), 4),
    }


def against(
    choice: Choice, corpus: Survey, scores: Scores, dropped: Dropped, planted: Bool[np.ndarray, "n"]
) -> list[dict[str, Any]]:
    """How well every score that there is finds the planted documents, at the same fraction."""
    rows = []
    if choice.by in CLUSTERED:
        score = -scores[DISTANCE] if choice.by == "prototypes" else None
        rows.append(against_planted(planted, choice.by, np.any(list(dropped.values()), axis=0), score))
    for name, score in scores.items():
        if not name.startswith("cluster"):
            found = drop_highest(_documents(choice, corpus), score, choice.fraction)
            rows.append(against_planted(planted, name, found, score))
    return rows


def _documents(choice: Choice, corpus: Survey) -> Documents:
    sizes = corpus.n_bytes[corpus.trains]
    return Documents(corpus.training_names, sizes if choice.of == "bytes" else np.ones_like(sizes))
