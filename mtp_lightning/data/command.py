"""`mtp data prepare` and `mtp data pairs`.

Anything heavy is imported when a command runs, so `--help` is quick.
"""

import json as json_module
from pathlib import Path
from typing import Literal

from mtp_lightning.data.corpora.chat import with_template
from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.data.output import print_table, write_whole
from mtp_lightning.data.stories.questions import story_pairs
from mtp_lightning.data.tokens.tokenizer import load_tokenizer
from mtp_lightning.errors import InputError
from mtp_lightning.files import check_json
from mtp_lightning.ranges import Count, Seed, check_value

CorpusKind = Literal["python_stdlib", "stories", "text", "json", "parquet", "hub", "pairs", "story_pairs"]


def prepare_command(
    out: str,
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
    keep: str | None = None,
    workers: int = 1,
    tokenizer: str = "bytes",
    end_token: str | None = None,
    validation_fraction: float = 0.05,
    split_seed: int = 0,
    shard_tokens: int = 1 << 27,
    json: str | None = None,
) -> None:
    """Tokenize a corpus into memory-mapped shards: use them with `data.source: {kind: shards, path: OUT}`.

    A command that was killed goes on when it is given again; the bytes do not depend on that, nor on --workers.

    Args:
        out: Folder to make; must not exist.
        kind: Where the corpus comes from.
        path: File, folder or glob pattern; name of a hub data set.
        glob: Which files of a folder to read, as in "**/*.md".
        separator: Splits text files into documents; after `re:` a regular expression; by default a file is one.
        text_column: Column of json, parquet and hub data that holds the text.
        name: Configuration of a hub data set.
        split: Split of a hub data set.
        revision: Commit of a hub data set.
        max_documents: Read only so many documents.
        chat_template: File with the template of pairs with messages; by default the one beside the tokenizer.json.
        strict: Refuse a corpus of which anything is left out.
        deduplicate: Leave out documents whose text occurred before, letter for letter.
        keep: List of documents to read alone, as `mtp data prune` writes it.
        workers: Processes that tokenize.
        tokenizer: "bytes", or the path of a tokenizer.json.
        end_token: The token that ends a document; by default one with a usual name, special tokens first.
        validation_fraction: Part of the documents, in expectation, that is for validation.
        split_seed: Another seed, another choice of validation documents.
        shard_tokens: Tokens of a shard file, at most.
        json: File to write the printed table to as well.
    """
    source = SourceConfig(
        kind=kind, path=path, glob=glob, separator=separator, text_column=text_column, name=name, split=split,
        revision=revision, max_documents=max_documents, chat_template=chat_template, strict=strict,
        deduplicate=deduplicate, keep=keep,
    )  # fmt: skip
    from mtp_lightning.data.tokens.prepare import PrepareWorkers, ShardSettings, prepare_source, summary

    check_value("workers", workers, PrepareWorkers)
    directory = Path(out)
    if directory.exists():
        raise InputError(f"out: '{out}' exists already; remove it, or choose another folder")
    check_json(json, out=out, path=path, tokenizer=tokenizer, keep=keep)
    settings = ShardSettings(validation_fraction, split_seed, shard_tokens)
    source = with_template(source, tokenizer)
    meta = prepare_source(directory, source, load_tokenizer(tokenizer, end_token), settings, workers)
    rows = [
        {
            "split": split,
            "documents": part.n_documents,
            "tokens": part.n_tokens,
            "bytes_per_token": round(part.n_bytes / part.n_tokens, 4),
            "files": len(part.shards),
        }
        for split, part in meta.splits.items()
    ]
    print_table(f"{out}: vocabulary {meta.vocab_size}, fingerprint {meta.fingerprint}", rows)
    print(summary(source, meta))
    if json is not None:
        written = {
            "directory": out,
            "vocab_size": meta.vocab_size,
            "fingerprint": meta.fingerprint,
            "splits": rows,
            "source": meta.account,
        }
        write_whole(Path(json), json_module.dumps(written, indent=1) + "\n")


def pairs_command(
    out: str,
    count: int = 20_000,
    side: Literal["all", "train", "validation"] = "all",
    seed: int = 2,
    invented_names: bool = False,
    validation_fraction: float = 0.05,
    split_seed: int = 0,
) -> None:
    """Write questions about generated stories, with their answers, as JSON lines of `prompt` and `completion`.

    Args:
        out: The file to make; must not exist.
        count: Stories, each with one question.
        side: All of them, or those that `data.source.kind: story_pairs` trains on, or validates on.
        seed: Of the stories; that of `story_pairs` by default.
        invented_names: Names out of some two million, which a model can only copy.
        validation_fraction: As of the data that are split so.
        split_seed: As of the data that are split so.
    """
    from mtp_lightning.data.preparing.chunks import split_position, split_threshold
    from mtp_lightning.data.tokens.prepare import ShardSettings

    check_value("count", count, Count)
    check_value("seed", seed, Seed)
    settings = ShardSettings(validation_fraction, split_seed)
    if Path(out).exists():
        raise InputError(f"out: '{out}' exists already; remove it, or choose another file")
    found = list(story_pairs(count, seed, invented_names))
    if side != "all":
        positions = [split_position(pair.name, settings.split_seed) for pair in found]
        threshold = split_threshold(settings.validation_fraction, min(positions), max(positions))
        found = [pair for pair, at in zip(found, positions) if (at < threshold) == (side == "validation")]
    lines = [json_module.dumps({"prompt": pair.prompt, "completion": pair.answer}) + "\n" for pair in found]
    write_whole(Path(out), "".join(lines))
    print(f"{out}: {len(lines):,} pairs")
