"""The tokenizer of somebody's model: tokenizer.json as it is, SentencePiece's tokenizer.model converted."""

import json
import shlex
from pathlib import Path
from typing import Any

from mtp_lightning.data.tokens.tokenizer import HuggingFaceTokenizer, Tokenizer, load_tokenizer
from mtp_lightning.data.tokens.vocabulary import is_padded
from mtp_lightning.errors import InputError

JSON, SENTENCEPIECE = "tokenizer.json", "tokenizer.model"
PROBES = (
    "def main(a, b):\n    return a[0] + b  # twice\n",
    "  Two spaces,\ttabs\r\n\n\nand 12345.678 numbers",
    "Ünïcödé, \u00a0 \ufb01, ½, 漢字, \u0928\u092e\u0938\u094d\u0924\u0947 and 🙂👩\u200d💻",
    "aaaaaaaaaaaaaaaaa the The tHe <s> </s> <0x41> ▁ _",
)
"""Texts on which a converted tokenizer has to do what its original does."""


def find_tokenizer(folder: Path, given: str | None, end_token: str | None, vocab_size: int) -> Tokenizer | None:
    """
    Args:
        given: a file instead of the folder's own, or `none`.
        end_token: the end of a document; by default the one that tokenizer_config.json names, or one of a usual name.
        vocab_size: rows of the embedding. More than the tokenizer has is usual (padding); fewer cannot be.

    Raises:
        InputError: no tokenizer, one that cannot be used, or one with more tokens than the model.
    """
    if given == "none":
        return None
    path = _path(folder, given)
    try:
        tokenizer = _load(path, end_token)
    except InputError as error:
        said = str(error).replace("data.end_token", "--end_token").replace("data.tokenizer", "--tokenizer")
        raise InputError(said) from error
    if tokenizer.vocab_size > vocab_size:
        raise InputError(
            f"the tokenizer '{path}' has ids up to {tokenizer.vocab_size - 1}, and the model's embedding {vocab_size} "
            "rows: it is not this model's tokenizer"
        )
    return tokenizer


def rows_note(tokenizer: Tokenizer | None, vocab_size: int) -> str:
    """What a user has to know of an embedding with more rows than a run takes for padding; else nothing."""
    if tokenizer is None or tokenizer.vocab_size == vocab_size or is_padded(vocab_size, tokenizer.vocab_size):
        return ""
    count = tokenizer.vocab_size
    return (
        f"the embedding has {vocab_size} rows for {count} tokens, more than a run takes for padding: one that begins "
        f"with it wants --model.backbone.vocab_size {count} --model.init.vocabulary transfer, which leaves the rest out"
    )


def run_flags(folder: Path, given: str | None, tokenizer: Tokenizer | None) -> str:
    """The flags by which the tokens of a run are this model's, after a space.

    Args:
        folder: as `find_tokenizer` has it, and so `given`.
        tokenizer: what it found.
    """
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return ""
    path, end = _path(folder, given), f"--data.end_token {shlex.quote(tokenizer.end_token)}"
    if path.suffix == ".model":
        return f" --data.tokenizer FOLDER {end}, where `mtp export` with --to hf wrote FOLDER, with its tokenizer.json"
    return f" --data.tokenizer {shlex.quote(str(path))} {end}"


def _path(folder: Path, given: str | None) -> Path:
    if given:
        return Path(given).expanduser()
    found = next((folder / name for name in (JSON, SENTENCEPIECE) if (folder / name).is_file()), None)
    if found is None:
        raise InputError(
            f"'{folder}' holds neither {JSON} nor {SENTENCEPIECE}: give one by --tokenizer FILE, or --tokenizer none "
            "for a model without"
        )
    return found


def _load(path: Path, end_token: str | None) -> Tokenizer:
    if path.suffix == ".model":
        return HuggingFaceTokenizer(converted(path), origin=str(path), end_token=end_token)
    return load_tokenizer(str(path), end_token or _end_token(path.parent))


def _end_token(folder: Path) -> str | None:
    """What tokenizer_config.json beside it calls the end; None where it says nothing."""
    try:
        named: Any = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("eos_token")
    except (OSError, ValueError, RecursionError, AttributeError):  # of no weight: the usual names are looked for
        return None
    named = named.get("content") if isinstance(named, dict) else named
    return named if isinstance(named, str) else None


def converted(path: Path) -> str:
    """A SentencePiece model (BPE with bytes for what it does not know, as Llama 1 and 2 and Mistral have) as the text
    of a tokenizer.json.

    Raises:
        InputError: `sentencepiece` is not installed; no such file; or a model that does something else.
    """
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise InputError(
            f"'{path}' is SentencePiece's: to convert it, `pip install sentencepiece`; or give a {JSON} by --tokenizer"
        ) from error
    pieces: Any = SentencePieceProcessor()
    try:
        pieces.Load(str(path))
    except (OSError, RuntimeError) as error:
        raise InputError(f"'{path}' is no SentencePiece model: {error}") from error
    tokenizer = _bpe(pieces)
    for text in PROBES:
        own = tokenizer.encode(text, add_special_tokens=False).ids
        if own != pieces.EncodeAsIds(text):
            raise InputError(
                f"'{path}' cannot be converted exactly: it is no byte-pair encoding of Llama's form (the text "
                f"{text!r:.40} is encoded otherwise); give a {JSON} by --tokenizer"
            )
    return str(tokenizer.to_str())


def _bpe(pieces: Any) -> Any:
    """SentencePiece merges the pair that makes the piece of the best score; `tokenizers` the pair listed first."""
    from tokenizers import AddedToken, decoders, normalizers, processors
    from tokenizers import Tokenizer as Fast
    from tokenizers.models import BPE

    count = pieces.GetPieceSize()
    ids = {pieces.IdToPiece(i): i for i in range(count)}
    control = [i for i in range(count) if pieces.IsControl(i) or pieces.IsUnknown(i)]
    plain = {piece: i for piece, i in ids.items() if i not in set(control) and not pieces.IsByte(i)}
    merges = [
        (-pieces.GetScore(i), len(piece[:cut]), (piece[:cut], piece[cut:]))
        for piece, i in plain.items()
        for cut in range(1, len(piece))
        if piece[:cut] in plain and piece[cut:] in plain
    ]
    unknown = pieces.IdToPiece(pieces.unk_id())
    model = BPE(ids, [pair for *_, pair in sorted(merges)], unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Fast(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(pieces.IdToPiece(i), normalized=False) for i in control])
    tokenizer.encode_special_tokens = True
    if pieces.bos_id() >= 0:  # as Llama's tokenizers do
        begin = pieces.IdToPiece(pieces.bos_id())
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, pieces.bos_id())]
        )
    return tokenizer
