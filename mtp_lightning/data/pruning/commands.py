"""`mtp data prune`.

Anything heavy is imported when the command runs, so `--help` is quick.
"""

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from mtp_lightning.data.command import CorpusKind
from mtp_lightning.data.corpora.kept import kept_lines, read_kept
from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.data.output import partial_folder, print_table, write_whole
from mtp_lightning.data.pruning.options import ALPHA, CLUSTERS, Choice
from mtp_lightning.errors import InputError
from mtp_lightning.files import check_json
from mtp_lightning.ranges import Kept, check_value


def prune_command(
    by: str | None = None,
    fraction: float | None = None,
    out: str | None = None,
    of: Literal["bytes", "documents"] = "bytes",
    ckpt: str | None = None,
    embedder: str | None = None,
    scores: str | None = None,
    alpha: float = ALPHA,
    clusters: int = CLUSTERS,
    first_tokens: int | None = None,
    gate_documents: int = 100,
    force: bool = False,
    planted: str | None = None,
    seed: int = 0,
    workers: int = 1,
    kind: CorpusKind = "python_stdlib",
    path: str | None = None,
    glob: str | None = None,
    separator: str | None = None,
    text_column: str = "text",
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    max_documents: int | None = None,
    chat_template: str | None = None,
    strict: bool = False,
    deduplicate: bool = False,
    validation_fraction: float = 0.05,
    split_seed: int = 0,
    json: str | None = None,
) -> None:
    """Leave out a part of a corpus's training documents: read the rest with `data.source.keep: OUT`.

    A command that was killed goes on when it is given again; the bytes do not depend on that, nor on --workers.

    Args:
        by: What goes first (needed). length: the longest; random: a hash of the name; loss, loss_head_<i>: what head 1,
            or head i, finds hardest; gap: where the last head's loss is most above head 1's; scip: small clusters,
            then what is far from its centroid; prototypes: what is near its centroid.
        fraction: How much, of all training documents together (needed).
        out: The list to make, JSON lines (needed); scores and reasons go to OUT.parquet. Must not exist.
        of: What the fraction is of.
        ckpt: Checkpoint, or a file of `mtp export`, or the folder of a run, of which the newest checkpoint is taken.
        embedder: Of scip and prototypes, in place of a checkpoint: the folder of somebody's encoder, in Hugging Face's
            layout (config.json, tokenizer.json, *.safetensors).
        scores: Of loss, loss_head_<i> and gap, in place of a checkpoint: the OUT.parquet of an earlier command for the
            same corpus, whose losses are taken as they are.
        alpha: Of scip, the part of the fraction that small clusters give.
        clusters: Of scip and prototypes.
        first_tokens: Tokens of a document to look at; by default all.
        gate_documents: Of scip, documents that are corrupted to see whether the model's embeddings tell; as many others
            give the centroids for that.
        force: Prune by a model that does not see the corruptions, too; the list says so.
        planted: List of documents that are known to be bad, as `mtp data plant` writes it, to measure scores against.
        seed: Of random, of the clusters and of the corruptions.
        workers: Processes that measure.
        kind: Where the corpus comes from.
        path: File, folder or glob pattern; name of a hub data set.
        glob: Which files of a folder to read, as in "**/*.md".
        separator: Splits text files into documents; after `re:` a regular expression; by default a file is one.
        text_column: Column of json, parquet and hub data that holds the text.
        name: Configuration of a hub data set.
        split: Split of a hub data set.
        revision: Commit of a hub data set.
        max_documents: Read only so many documents.
        chat_template: File with the template of pairs with messages.
        strict: Refuse a corpus of which anything is left out.
        deduplicate: Leave out documents whose text occurred before, letter for letter.
        validation_fraction: As of the runs that read the list; validation documents are all kept.
        split_seed: As of the runs that read the list.
        json: File to write the printed figures to as well.
    """
    if by is None or fraction is None or out is None:
        raise InputError("--by, --fraction and --out are needed: what goes first, how much, and the list to make")
    choice = Choice(by, fraction, of, ckpt, alpha, clusters, seed, first_tokens, embedder, scores)
    source = SourceConfig(
        kind=kind, path=path, glob=glob, separator=separator, text_column=text_column, name=name, split=split,
        revision=revision, max_documents=max_documents, chat_template=chat_template, strict=strict,
        deduplicate=deduplicate,
    )  # fmt: skip
    from mtp_lightning.data.pruning.prune import against, choose, figures, kept, parts_left_out, scores_of
    from mtp_lightning.data.pruning.record import parquet, read_planted
    from mtp_lightning.data.pruning.score_files import measuring
    from mtp_lightning.data.pruning.survey import survey
    from mtp_lightning.data.tokens.prepare import PrepareWorkers, ShardSettings

    check_value("workers", workers, PrepareWorkers)
    check_value("gate_documents", gate_documents, Kept)
    if force and by != "scip":
        raise InputError(f"force: --by {by} is not refused for what a model sees: leave it out")
    record = f"{out}.parquet"
    for file in (out, record):
        if Path(file).exists() and not partial_folder(Path(out)).exists():
            raise InputError(f"out: '{file}' exists already; remove it, or choose another file")
    check_json(json, out=out, path=path, ckpt=ckpt, scores=scores, planted=planted, **{"the record of out": record})
    if Path(out).exists():  # of a command that was killed
        made_by = read_kept(out).header.made_by
        if (made_by.get("by"), made_by.get("fraction"), made_by.get("seed")) != (by, fraction, seed):
            raise InputError(
                f"out: '{out}' exists already, and is of another command; remove it, or choose another file"
            )
    corpus = survey(source, ShardSettings(validation_fraction, split_seed))
    known = None if planted is None else read_planted(planted, corpus)
    with measuring(Path(out), corpus) as measure:
        found, made_by = scores_of(choice, corpus, measure, workers, gate_documents, force)
        dropped = choose(choice, corpus, found)
        made_by |= {"left_out": parts_left_out(choice, corpus, found, dropped)}
        header, names = kept(choice, corpus, dropped, made_by)
        recorded = Path(record).exists()
        _write_once(record, parquet(corpus, found, dropped, asdict(header)))
        try:
            _write_once(out, kept_lines(header, names).encode())
        except BaseException:
            if not recorded:
                Path(record).unlink(missing_ok=True)  # else the command is refused when it is given again
            raise
        row = figures(choice, corpus, dropped)
        print_table(
            f"{out}: {len(names):,} of {len(corpus.names):,} documents are kept; why, and all scores: {record}", [row]
        )
        rows = [] if known is None else against(choice, corpus, found, dropped, known)
        if rows:
            print_table(f"against the documents that {planted} names", rows)
        print(f"left out before: {corpus.account.missing() or 'nothing'}")
        if json is not None:
            written = {"out": out, "header": asdict(header), **row, "planted": rows}
            write_whole(Path(json), json_module.dumps(written, indent=1) + "\n")


def _write_once(path: str, content: bytes) -> None:
    """What is there already was written by the same command, which was killed.

    Raises:
        InputError: it was not.
    """
    if not Path(path).exists():
        write_whole(Path(path), content)
    elif Path(path).read_bytes() != content:
        raise InputError(f"out: '{path}' exists already, and is of another command; remove it, or choose another file")
