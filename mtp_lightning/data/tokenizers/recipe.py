"""A tokenizer that a configuration describes: trained on the run's own training documents when they are prepared."""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from filelock import FileLock

from mtp_lightning.data.corpora.description import describe
from mtp_lightning.data.corpora.kept import check_split
from mtp_lightning.data.mixtures.sources import MixtureSource, weight_at
from mtp_lightning.data.tokenizers.training import (
    Digits,
    PreTokenization,
    VocabSize,
    check_size,
    mixed_texts,
    train_bpe,
)
from mtp_lightning.data.tokens.prepare import ShardSettings
from mtp_lightning.data.tokens.tokenizer import END_OF_TEXT, HuggingFaceTokenizer, Tokenizer, load_tokenizer
from mtp_lightning.data.tokens.vocabulary import check_vocabulary, is_padded, with_sentinels
from mtp_lightning.data.transforms.infilling import SentinelNames
from mtp_lightning.errors import InputError
from mtp_lightning.files import write_text
from mtp_lightning.ranges import Count, check_ranges

FORMAT = 2
"""Before 2 a recipe could read the validation document of a small corpus."""


@dataclass(frozen=True)
class TokenizerRecipe:
    """A byte-level BPE tokenizer, as `mtp data train-tokenizer` makes it.

    Raises:
        InputError: a number that cannot be.
    """

    vocab_size: VocabSize = 4096
    """Tokens, the 256 bytes and the end of a document among them. The model's is
    `${data.init_args.tokenizer.train.vocab_size}`."""
    pre_tokenization: PreTokenization = "gpt2"
    """What merges stay inside: `gpt2` words, numbers, runs of symbols; `gpt4` or `llama3`, the same; `punct` symbols
    and digits one by one; `lines` all but line breaks; `none` the whole document."""
    digits: Digits = "own"
    """Numbers as the pre-tokenization has them, digit by digit (`single`), in `groups` of up to three, or `whole`."""
    max_documents: Count | None = None
    """Read only so many documents."""
    infilling: SentinelNames | None = None
    """With tokens of infilling (`data.infilling`), which count in `vocab_size`, under these names."""

    def __post_init__(self) -> None:
        check_ranges("data.tokenizer.train", TokenizerRecipe, vars(self))
        check_size("data.tokenizer.train.vocab_size", self.vocab_size, self.infilling)


@dataclass(frozen=True)
class TrainedTokenizer:
    """A tokenizer of the run's own."""

    train: TokenizerRecipe = field(default_factory=TokenizerRecipe)
    """How it is made."""


def tokenizer_of(
    spec: str | TrainedTokenizer,
    end_token: str | None,
    vocab_size: int,
    infilling: bool,
    sources: Sequence[MixtureSource],
    directory: Path,
    settings: ShardSettings,
) -> Callable[[], Tokenizer]:
    """What gives the tokenizer of a run. One that is given is read here, one of a recipe is trained when it is needed,
    so that a configuration can be checked without a corpus.

    Args:
        spec: what data.tokenizer says.
        vocab_size: of the model.
        infilling: whether it needs tokens of infilling.
        sources: the run's corpora, which a recipe is trained on: their training documents, bytes by their weights.
        directory: where prepared corpora are kept, and tokenizers as tokenizers/<hash>.json.

    Raises:
        InputError: a tokenizer that cannot be read, or that does not go with the rest.
    """
    if isinstance(spec, str):
        loaded = load_tokenizer(spec, end_token)
        loaded = with_sentinels(loaded) if infilling else loaded
        check_vocabulary(loaded, vocab_size, spec)
        return partial(_itself, loaded)
    recipe = spec.train
    if end_token is not None:
        raise InputError(f"data.end_token: a tokenizer that is trained has its own, {END_OF_TEXT}: leave it out")
    if infilling and recipe.infilling is None:
        raise InputError(
            "data.infilling: the tokenizer of data.tokenizer.train has no tokens of infilling: set "
            "data.tokenizer.train.infilling: starcoder, or give `bytes`, or a tokenizer.json that has them"
        )
    if vocab_size != recipe.vocab_size and not is_padded(vocab_size, recipe.vocab_size):
        raise InputError(
            f"model.backbone.vocab_size is {vocab_size}, and data.tokenizer.train.vocab_size {recipe.vocab_size}: set "
            "model.backbone.vocab_size: ${data.init_args.tokenizer.train.vocab_size}"
        )
    for part in sources:
        if part.epochs is not None:
            raise InputError(
                f"data.tokenizer.train: '{part.label}' of data.mixture has epochs, and a tokenizer is trained once: "
                "give weights"
            )
        if part.source.kind == "shards":
            raise InputError(
                f"data.tokenizer.train needs text, and '{part.source.path}' holds shards, which are tokens already: "
                "give the tokenizer that made them"
            )
    return partial(made_once, recipe, sources, directory / "tokenizers", settings)


def _itself(tokenizer: Tokenizer) -> Tokenizer:
    return tokenizer


def made_once(
    recipe: TokenizerRecipe, sources: Sequence[MixtureSource], folder: Path, settings: ShardSettings
) -> HuggingFaceTokenizer:
    """The tokenizer of a recipe, trained by the first run that needs it, for all that would train the same.

    Raises:
        InputError: the corpus cannot be read, or gives fewer tokens than asked for.
    """
    described = [[describe(part.source), weight_at(part, 0)] for part in sources]
    identity = [FORMAT, asdict(recipe), described, settings.validation_fraction, settings.split_seed]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{digest}.json"
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"data.directory: cannot write '{folder}': {error.strerror}") from error
        with FileLock(f"{path}.lock"):  # others of this run, or of a grid, wait for the first
            if not path.exists():
                write_text(path, _trained(recipe, sources, settings))
    return HuggingFaceTokenizer(path.read_text(encoding="utf-8"), origin=str(path))


def _trained(recipe: TokenizerRecipe, sources: Sequence[MixtureSource], settings: ShardSettings) -> str:
    for part in sources:
        check_split(part.source, settings.validation_fraction, settings.split_seed)
    print(f"training a tokenizer of {recipe.vocab_size:,} tokens", file=sys.stderr)
    texts = mixed_texts(sources, None, settings.validation_fraction, settings.split_seed, recipe.max_documents)
    serialized = train_bpe(texts, recipe.vocab_size, recipe.pre_tokenization, recipe.digits, recipe.infilling)
    made = HuggingFaceTokenizer(serialized).vocab_size
    if made != recipe.vocab_size:
        raise InputError(
            f"data.tokenizer.train.vocab_size is {recipe.vocab_size}, and the texts give {made} tokens: set it to that "
            "or less, or give more text"
        )
    return serialized
