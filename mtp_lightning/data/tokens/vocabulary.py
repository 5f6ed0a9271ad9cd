"""What a model's tokens are: those of its corpora, and those that no text has."""

from mtp_lightning.data.tokens.tokenizer import ByteTokenizer, Tokenizer
from mtp_lightning.data.transforms.infilling import needed_sentinels
from mtp_lightning.errors import InputError


def with_sentinels(tokenizer: Tokenizer) -> Tokenizer:
    """The same with the tokens of infilling: bytes get some, a file has its own.

    Raises:
        InputError: it has none.
    """
    found = ByteTokenizer(infilling=True) if isinstance(tokenizer, ByteTokenizer) else tokenizer
    needed_sentinels(found)
    return found


def of_text(tokenizer: Tokenizer) -> Tokenizer:
    """What texts are prepared by: bytes without the tokens that no text has, so that all runs share the shards."""
    return ByteTokenizer() if isinstance(tokenizer, ByteTokenizer) else tokenizer


def can_read(tokenizer: Tokenizer, fingerprint: str) -> bool:
    """Whether tokens of the tokenizer with that fingerprint are this one's, too."""
    return fingerprint in (tokenizer.fingerprint, of_text(tokenizer).fingerprint)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, spec: str) -> None:
    """
    Args:
        vocab_size: of the model.
        spec: what data.tokenizer says.

    Raises:
        InputError: the model has not a row for each token, or more than padding explains.
    """
    n_tokens = tokenizer.vocab_size
    if n_tokens == vocab_size or (not isinstance(tokenizer, ByteTokenizer) and is_padded(vocab_size, n_tokens)):
        return
    infilling = isinstance(tokenizer, ByteTokenizer) and tokenizer.sentinel_ids
    raise InputError(
        f"model.backbone.vocab_size is {vocab_size}, and the tokenizer data.tokenizer = '{spec}' has {n_tokens} tokens"
        f"{' with those of data.infilling' if infilling else ''}: set model.backbone.vocab_size: {n_tokens}"
    )


def is_padded(vocab_size: int, n_tokens: int) -> bool:
    """Whether a model has some rows more than its tokenizer has tokens, as Qwen's have for faster matrix products, and
    DeepSeek's for tokens to come: a multiple of 64, at most 1,024 or a sixteenth more."""
    return vocab_size % 64 == 0 and 0 < vocab_size - n_tokens <= max(1024, n_tokens // 16)
