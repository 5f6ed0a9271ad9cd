"""Infilling, or fill in the middle (Bavarian et al. 2022, arXiv 2207.14255; Code Llama, 2308.12950): a text is cut at
two places, and its middle is written last, after what is before and after it.

    psm    PRE prefix SUF suffix MID middle END
    spm    PRE SUF suffix MID prefix middle END         (their variant 2: psm where the prefix is empty)

A text is cut between tokens, drawn uniformly; of bytes, between characters. All of it counts in the loss. Two levels:

    context    a window's documents, or the parts of them that it has, are transformed: each sample anew, every middle
               whole and with its end
    document   documents are transformed before they are cut into windows: always alike, and long ones are torn

What a sample is depends on the seed and on its number alone, never on the number of heads: at context level the first
T + 1 tokens are what the transform makes of a window, exactly full, so that the end of a middle is learned. The tokens
after them, which further heads alone look at, follow in the corpus; after a middle that was cut to fit they count for
nothing.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from mtp_lightning.data.tokens.tokenizer import ByteTokenizer, Tokenizer
from mtp_lightning.data.tokens.windows import random_words
from mtp_lightning.errors import InputError
from mtp_lightning.ranges import Range, check_ranges
from mtp_lightning.shapes import Int

Order = Literal["psm", "spm"]
Probability = Annotated[float, Range(least=0, most=1)]
LEAST = 3
"""Tokens of a text that is worth cutting."""


@dataclass(frozen=True)
class InfillingConfig:
    """What part of the documents is trained on with its middle last.

    Raises:
        InputError: a probability outside [0, 1].
    """

    rate: Probability = 0.5
    """Part of the documents that are transformed: 0.5 in Bavarian et al., 0.9 in Code Llama."""
    spm: Probability = 0.5
    """Part of these with the suffix first."""
    level: Literal["context", "document"] = "context"
    """Whether the documents of a window are transformed, or those of the corpus before there are windows."""
    cross_sentinels: bool = True
    """Whether a head's target may lie beyond a sentinel, where the text jumps. Makes no difference to head 1."""

    def __post_init__(self) -> None:
        check_ranges("data.infilling", InfillingConfig, vars(self))


class Sentinels(NamedTuple):
    """Ids of the tokens that say what comes next; `end`, in most tokenizers that of a document, that the middle is
    whole."""

    prefix: int
    suffix: int
    middle: int
    end: int


SentinelNames = Literal["codellama", "codellama_plain", "starcoder", "qwen"]
"""Whose names the tokens of infilling have."""
NAMES: dict[SentinelNames, tuple[str, ...]] = {
    "codellama": ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"),
    "codellama_plain": ("<PRE>", "<SUF>", "<MID>", "<EOT>"),
    "starcoder": ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    "qwen": ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
}
"""Prefix, suffix, middle, and in Code Llama's the end of the middle; others end it as a document."""
STARCODER = NAMES["starcoder"]
"""What those of bytes are called where they need names."""


def sentinels(tokenizer: Tokenizer) -> Sentinels | None:
    """Those that a tokenizer has: bytes with sentinels, or a file under a usual name. None where it has none."""
    if isinstance(tokenizer, ByteTokenizer):
        if not tokenizer.sentinel_ids:
            return None
        prefix, suffix, middle = tokenizer.sentinel_ids
        return Sentinels(prefix, suffix, middle, tokenizer.eos_id)
    found = list(_named(tokenizer).values())
    return Sentinels(*found[:3], *(found[3:] or [tokenizer.eos_id])) if found else None


def _named(tokenizer: Tokenizer) -> dict[str, int]:
    """Name -> id of those that a file has under usual names, in the order of `Sentinels`; none of bytes."""
    state = tokenizer.state()
    if state["kind"] != "huggingface":
        return {}
    described: dict[str, Any] = json.loads(state["json"])
    ids = {token["content"]: token["id"] for token in described.get("added_tokens") or ()}
    vocabulary = described.get("model", {}).get("vocab")
    if isinstance(vocabulary, dict):
        ids |= vocabulary
    elif isinstance(vocabulary, list):  # of a unigram model: pairs of a token and its score
        ids |= {pair[0]: number for number, pair in enumerate(vocabulary)}
    for names in NAMES.values():
        if all(name in ids for name in names):
            return {name: ids[name] for name in names}
    return {}


def needed_sentinels(tokenizer: Tokenizer) -> Sentinels:
    """
    Raises:
        InputError: the tokenizer has none, or some that a text can write.
    """
    found = sentinels(tokenizer)
    if found is None:
        names = "; ".join(", ".join(names) for names in NAMES.values())
        raise InputError(
            f"data.infilling: the tokenizer has no tokens for prefix, suffix and middle (looked for: {names}): add "
            "them to its added_tokens, train one that has them (mtp data train-tokenizer --infilling starcoder, or "
            "data.tokenizer.train.infilling), or train on bytes"
        )
    for name, i in _named(tokenizer).items():
        if i in tokenizer.encode(f"{name} {name.replace('▁', ' ')}"):
            raise InputError(
                f"data.infilling: '{name}' of data.tokenizer is a token that a text can write (an ordinary one), and "
                'would cut documents that have its name in them: give it "special": true in added_tokens of the file'
            )
    return found


def infilling_prompt(before: list[int], after: list[int], marks: Sentinels, order: Order) -> list[int]:
    """What the middle is asked for with: a model of infilling goes on with it."""
    if order == "psm":
        return [marks.prefix, *before, marks.suffix, *after, marks.middle]
    return [marks.prefix, marks.suffix, *after, marks.middle, *before]


class WindowTransform:
    """Context level, sample by sample.

    Args:
        tokenizer: whose tokens they are.
        context: T.
        seed: of what is drawn.

    Raises:
        InputError: the tokenizer has no sentinels.
    """

    def __init__(self, config: InfillingConfig, tokenizer: Tokenizer, context: int, seed: int) -> None:
        self.config, self.context, self.seed = config, context, seed
        self.marks = needed_sentinels(tokenizer)
        self.eos = tokenizer.eos_id
        self._of_bytes = isinstance(tokenizer, ByteTokenizer)

    def __call__(
        self, sample: int, tokens: Int[np.ndarray, "L"], documents: Int[np.ndarray, "L"]
    ) -> tuple[Int[np.ndarray, "L"], Int[np.ndarray, "L"]]:
        """
        Args:
            sample: its number, as the order of the data counts.
            tokens: of a window, L > T.
            documents: ids that change at every border.

        Returns:
            tokens and document ids of what is trained on.
        """
        L, whole = len(tokens), self.context + 1
        borders = np.flatnonzero(np.diff(documents)) + 1
        pieces: list[np.ndarray] = []
        owners: list[np.ndarray] = []
        filled, taken, free = 0, 0, int(documents.max()) + 1
        for number, (start, stop) in enumerate(zip([0, *borders], [*borders, L])):
            piece = tokens[start:stop]
            made = self._transformed(sample, number, piece, whole - filled)
            if made is None:
                new, taken = piece, stop
            else:
                new, taken = made[0], start + made[1]
            pieces.append(new)
            owners.append(np.full(len(new), documents[start]))
            filled += len(new)
            if filled >= whole:
                break
        rest = slice(taken, taken + max(L - filled, 0))
        pieces.append(tokens[rest])
        owners.append(documents[rest] if made is None else np.full(len(tokens[rest]), free))
        return np.concatenate(pieces)[:L], np.concatenate(owners)[:L].astype(documents.dtype)

    def _transformed(
        self, sample: int, number: int, piece: Int[np.ndarray, "l"], room: int
    ) -> tuple[Int[np.ndarray, "m"], int] | None:
        """(at most `room` tokens of a document of a window, how many of its tokens are in them), or None for one that
        stays as it is."""
        chance, second, *draws = random_words(f"infilling {self.seed} {sample} {number}", 4)
        if chance >= self.config.rate * 2**64:
            return None
        is_whole = piece[-1] == self.eos
        text = piece[:-1] if is_whole else piece
        most = room - 4  # three sentinels and the end
        used = min(len(text), most)
        if used < LEAST:
            return None
        text = text[:used]
        prefix, middle, suffix = cut(text, draws, self._of_bytes)
        order: Order = "spm" if second < self.config.spm * 2**64 else "psm"
        prompt = infilling_prompt(prefix.tolist(), suffix.tolist(), self.marks, order)
        return np.array([*prompt, *middle, self.marks.end]), used + int(is_whole and used == len(piece) - 1)


def cut(
    text: Int[np.ndarray, "l"], draws: Sequence[int], of_bytes: bool
) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, "m"], Int[np.ndarray, "s"]]:
    """Prefix, middle and suffix.

    Args:
        draws: two random 64-bit numbers.
        of_bytes: whether not to cut inside a character.
    """
    places = [draw % (len(text) + 1) for draw in draws]
    if of_bytes:
        places = [character_start(place, len(text), lambda i: int(text[i])) for place in places]
    first, last = sorted(places)
    return text[:first], text[first:last], text[last:]


def character_start(place: int, length: int, byte_at: Callable[[int], int]) -> int:
    """The place in a text of bytes, or the beginning of the character that it is in: the further bytes are
    0b10......"""
    while 0 < place < length and byte_at(place) & 0xC0 == 0x80:
        place -= 1
    return place
