"""`mtp data train-tokenizer` and `mtp data compare-tokenizers`.

Anything heavy is imported when a command runs, so `--help` is quick.
"""

import json as json_module
from pathlib import Path

from mtp_lightning.data.command import CorpusKind
from mtp_lightning.data.corpora.account import Account
from mtp_lightning.data.corpora.documents import documents
from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.data.mixtures.sources import MixtureSource, check_mixture
from mtp_lightning.data.output import print_table, write_whole
from mtp_lightning.data.tokenizers.training import (
    Digits,
    PreTokenization,
    VocabSize,
    check_size,
    mixed_texts,
    train_bpe,
)
from mtp_lightning.data.tokens.tokenizer import HuggingFaceTokenizer, Tokenizer, load_tokenizer
from mtp_lightning.data.transforms.infilling import SentinelNames
from mtp_lightning.errors import InputError, did_you_mean
from mtp_lightning.files import check_json, check_out
from mtp_lightning.ranges import check_value


def train_tokenizer_command(
    out: str,
    vocab_size: int = 4096,
    pre_tokenization: PreTokenization = "gpt2",
    digits: Digits = "own",
    infilling: SentinelNames | None = None,
    mixture: list[MixtureSource] | None = None,
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
    json: str | None = None,
) -> None:
    """Train a byte-level BPE tokenizer on a corpus: use it with `data.tokenizer: OUT`.

    Args:
        out: The tokenizer.json to make; must not exist.
        vocab_size: Tokens, the 256 bytes and the end of a document among them.
        pre_tokenization: Pieces that merges stay inside. gpt2: words, numbers, runs of symbols; gpt4, llama3: a letter
            may have a symbol before it, numbers are of three digits; punct: symbols and digits one by one; lines: all
            but line breaks; none: the whole document.
        digits: Numbers as the pre-tokenization has them, digit by digit, in groups of up to three, or whole.
        infilling: With the tokens that data.infilling needs, under these names.
        mixture: Several corpora in place of one, as `data.mixture`: '[{source: {kind: stories}, weight: 2}, ...]';
            weights are of bytes, and the first source that ends is the end.
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
        json: File to write the printed table to as well.
    """
    source = SourceConfig(
        kind=kind, path=path, glob=glob, separator=separator, text_column=text_column, name=name, split=split,
        revision=revision, max_documents=max_documents, chat_template=chat_template, strict=strict,
    )  # fmt: skip
    check_value("vocab_size", vocab_size, VocabSize)
    check_size("vocab_size", vocab_size, infilling)
    if mixture is not None:
        check_mixture(mixture, source)
    if Path(out).exists():
        raise InputError(f"out: '{out}' exists already; remove it, or choose another file")
    check_out(Path(out).parent)
    check_json(json, out=out, path=path)
    parts = [MixtureSource(source)] if mixture is None else mixture
    accounts = {part.label: Account() for part in parts}
    serialized = train_bpe(mixed_texts(parts, accounts), vocab_size, pre_tokenization, digits, infilling)
    tokenizer = HuggingFaceTokenizer(serialized, origin=out)
    write_whole(Path(out), serialized)
    row = {"vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id, "fingerprint": tokenizer.fingerprint}
    print_table(f"{out} (set model.backbone.vocab_size: {tokenizer.vocab_size})", [row])
    for label, account in accounts.items():
        found = f"files {account.files:,}, documents {account.documents:,}"
        print(f"{label}: {found}; left out: {account.missing() or 'nothing'}")
    if json is not None:
        write_whole(Path(json), json_module.dumps({"tokenizer": out, **row}, indent=1) + "\n")


def compare_tokenizers_command(
    tokenizers: list[str],
    reference: str | None = None,
    mixture: list[MixtureSource] | None = None,
    kind: CorpusKind = "python_stdlib",
    path: str | None = None,
    glob: str | None = None,
    separator: str | None = None,
    text_column: str = "text",
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    max_documents: int | None = None,
    picture: str | None = None,
    json: str | None = None,
) -> None:
    """Compare tokenizers on the same texts: bytes per token, normalized length, tokens a word, tokens never used.

    Args:
        tokenizers: Paths of tokenizer.json, and "bytes".
        reference: What the normalized sequence length (nsl) is measured against; by default the first.
        mixture: Several corpora in place of one, as `data.mixture`, measured one by one and together.
        kind: Where the corpus comes from.
        path: File, folder or glob pattern; name of a hub data set.
        glob: Which files of a folder to read, as in "**/*.md".
        separator: Splits text files into documents; after `re:` a regular expression; by default a file is one.
        text_column: Column of json, parquet and hub data that holds the text.
        name: Configuration of a hub data set.
        split: Split of a hub data set.
        revision: Commit of a hub data set.
        max_documents: Read only so many documents.
        picture: File to draw the table into, *.png.
        json: File to write the printed table to as well.
    """
    source = SourceConfig(
        kind=kind, path=path, glob=glob, separator=separator, text_column=text_column, name=name, split=split,
        revision=revision, max_documents=max_documents,
    )  # fmt: skip
    if mixture is not None:
        check_mixture(mixture, source)
    read = {f"the tokenizer '{name}'": name for name in tokenizers}
    check_json(json, path=path, **read)
    check_json(picture, "picture", json=json, path=path, **read)
    named = _named(tokenizers)
    if (reference := tokenizers[0] if reference is None else reference) not in named:
        raise InputError(f"reference: '{reference}' is none of the tokenizers{did_you_mean(reference, tokenizers)}")
    from mtp_lightning.data.tokenizers.comparing import draw, measure_tokenizers, rows_of

    parts = [MixtureSource(source)] if mixture is None else mixture
    texts = {part.label: (document.text for document in documents(part.source)) for part in parts}
    rows = rows_of(measure_tokenizers(named, texts), named, reference)
    shown = rows if len(texts) > 1 else [{key: row[key] for key in row if key != "source"} for row in rows]
    print_table(f"nsl: tokens over those of {reference}", shown)
    if json is not None:
        write_whole(Path(json), json_module.dumps({"reference": reference, "rows": rows}, indent=1) + "\n")
    if picture is not None:
        write_whole(Path(picture), draw(rows))


def _named(tokenizers: list[str]) -> dict[str, Tokenizer]:
    if not tokenizers:
        raise InputError("compare-tokenizers: which? Give paths of tokenizer.json, or `bytes`")
    for name in tokenizers:
        if tokenizers.count(name) > 1:
            raise InputError(f"compare-tokenizers: '{name}' is given twice")
    return {name: load_tokenizer(name, needs_end=False) for name in tokenizers}
