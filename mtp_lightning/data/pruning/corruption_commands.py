"""`mtp data corruptions` and `mtp data plant`.

Anything heavy is imported when a command runs, so `--help` is quick.
"""

import json as json_module
from pathlib import Path

from mtp_lightning.data.command import CorpusKind
from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.data.output import print_table, write_whole
from mtp_lightning.data.pruning.corruptions import Rate
from mtp_lightning.data.pruning.options import Share
from mtp_lightning.errors import InputError
from mtp_lightning.files import check_json
from mtp_lightning.ranges import Count, Kept, Seed, check_value


def corruptions_command(
    ckpt: str | None = None,
    embedder: str | None = None,
    count: int = 100,
    rate: float = 0.3,
    characters: int = 4000,
    first_tokens: int | None = None,
    seed: int = 0,
    kind: CorpusKind = "python_stdlib",
    path: str | None = None,
    glob: str | None = None,
    separator: str | None = None,
    text_column: str = "text",
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    max_documents: int | None = None,
    deduplicate: bool = False,
    validation_fraction: float = 0.05,
    split_seed: int = 0,
    json: str | None = None,
) -> None:
    """Does a model see that Python files were made worse? Five corruptions, by the loss of each head and by the
    distance to the nearest centroid: a score that sees too few of them is no reason to prune.

    Args:
        ckpt: Checkpoint, or a file of `mtp export`, or the folder of a run, of which the newest checkpoint is taken
            (needed, or an embedder).
        embedder: In its place: the folder of somebody's encoder, in Hugging Face's layout (config.json, tokenizer.json,
            *.safetensors), which has no losses.
        count: Training documents that are corrupted, chosen by a hash; as many others give the centroids.
        rate: Share of the places in a file that are edited (of names: of the variables), one of them at least.
        characters: Of a file, the first statements that are not longer together.
        first_tokens: Tokens of a document to look at; by default all.
        seed: Of the choice, of the corruptions and of the clusters.
        kind: Where the corpus comes from.
        path: File, folder or glob pattern; name of a hub data set.
        glob: Which files of a folder to read, as in "**/*.py".
        separator: Splits text files into documents; after `re:` a regular expression; by default a file is one.
        text_column: Column of json, parquet and hub data that holds the text.
        name: Configuration of a hub data set.
        split: Split of a hub data set.
        revision: Commit of a hub data set.
        max_documents: Read only so many documents.
        deduplicate: Leave out documents whose text occurred before, letter for letter.
        validation_fraction: As of the data that are split so.
        split_seed: As of the data that are split so.
        json: File to write the printed table to as well.
    """
    if (ckpt is None) == (embedder is None):
        raise InputError("--ckpt or --embedder is needed, one of them: whose numbers of documents to look at")
    for key, value, hint in (("count", count, Kept), ("rate", rate, Rate), ("characters", characters, Count),
                             ("seed", seed, Seed), ("first_tokens", first_tokens, Count | None)):  # fmt: skip
        check_value(key, value, hint)
    source = SourceConfig(
        kind=kind, path=path, glob=glob, separator=separator, text_column=text_column, name=name, split=split,
        revision=revision, max_documents=max_documents, deduplicate=deduplicate,
    )  # fmt: skip
    check_json(json, path=path, ckpt=ckpt)
    from mtp_lightning.data.pruning.gate import NEEDED, passes, shown
    from mtp_lightning.data.pruning.measuring import load_provider
    from mtp_lightning.data.pruning.prune import gate
    from mtp_lightning.data.pruning.survey import survey
    from mtp_lightning.data.tokens.prepare import ShardSettings

    provider = load_provider(ckpt, first_tokens, embedder)
    corpus = survey(source, ShardSettings(validation_fraction, split_seed))
    table = gate(provider, corpus, count, seed, rate, characters, losses=bool(provider.loss_names))
    rows = [dict(shown(row)) for row in table]
    printed = [row | {"sees": "yes" if row["sees"] else "no"} for row in rows]
    print_table(f"{ckpt or embedder}: what a corruption does to a score, and whether the score sees it", printed)
    verdict = {scorer: passes(table, scorer) for scorer in dict.fromkeys(row.scorer for row in table)}
    able = [scorer for scorer, passed in verdict.items() if passed]
    print(f"see at least {NEEDED} of the five: {', '.join(able) or 'none'}")
    if json is not None:
        written = {"ckpt": ckpt, "embedder": embedder, "model": provider.fingerprint, "passes": verdict, "rows": rows}
        write_whole(Path(json), json_module.dumps(written, indent=1) + "\n")


def plant_command(
    out: str,
    fraction: float = 0.2,
    rate: float = 0.3,
    seed: int = 0,
    kind: CorpusKind = "python_stdlib",
    path: str | None = None,
    glob: str | None = None,
    separator: str | None = None,
    text_column: str = "text",
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    max_documents: int | None = None,
    validation_fraction: float = 0.05,
    split_seed: int = 0,
    json: str | None = None,
) -> None:
    """Write a corpus of Python files of which a part was made worse, and the list of these: what finds them?

    Args:
        out: Folder to make: corpus.jsonl, and planted.txt with the names of what was made worse. Must not exist.
        fraction: Of the training documents, the part that is made worse, 0 for the sound twin; validation documents
            stay as they are.
        rate: Share of the places in a file that are edited (of names: of the variables), one of them at least.
        seed: Of the choice and of the corruptions.
        kind: Where the corpus comes from.
        path: File, folder or glob pattern; name of a hub data set.
        glob: Which files of a folder to read, as in "**/*.py".
        separator: Splits text files into documents; after `re:` a regular expression; by default a file is one.
        text_column: Column of json, parquet and hub data that holds the text.
        name: Configuration of a hub data set.
        split: Split of a hub data set.
        revision: Commit of a hub data set.
        max_documents: Read only so many documents.
        validation_fraction: As of the data that are split so.
        split_seed: As of the data that are split so.
        json: File to write the printed table to as well.
    """
    for key, value, hint in (("fraction", fraction, Share), ("rate", rate, Rate), ("seed", seed, Seed)):
        check_value(key, value, hint)
    source = SourceConfig(
        kind=kind, path=path, glob=glob, separator=separator, text_column=text_column, name=name, split=split,
        revision=revision, max_documents=max_documents,
    )  # fmt: skip
    if Path(out).exists():
        raise InputError(f"out: '{out}' exists already; remove it, or choose another folder")
    check_json(json, out=out, path=path)
    from mtp_lightning.data.pruning.planting import plant
    from mtp_lightning.data.tokens.prepare import ShardSettings

    rows = plant(Path(out), source, ShardSettings(validation_fraction, split_seed), fraction, rate, seed)
    print_table(f"{out}: read it with --kind json --path {Path(out) / 'corpus.jsonl'}", rows)
    if json is not None:
        write_whole(Path(json), json_module.dumps({"out": out, "rows": rows}, indent=1) + "\n")
