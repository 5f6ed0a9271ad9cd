"""Infilling at document level: a corpus of which a part of the documents have their middle last. Nothing is written:
where each token lies in the shards follows from where a document is cut, and that from its number.
"""

import numpy as np

from mtp_lightning.data.tokens.store import TokenStore
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer, Tokenizer
from mtp_lightning.data.tokens.windows import mix, random_words
from mtp_lightning.data.transforms.infilling import LEAST, InfillingConfig, character_start, needed_sentinels
from mtp_lightning.shapes import Int

_ADDED = 3
"""Sentinels of a document; the end of its middle is its own end."""


class InfilledStore:
    """Reads like the `TokenStore` that it is made of.

    Args:
        tokenizer: whose tokens they are.
        seed: of what is drawn.

    Raises:
        InputError: the tokenizer has no sentinels.
    """

    def __init__(self, store: TokenStore, config: InfillingConfig, tokenizer: Tokenizer, seed: int) -> None:
        self.store = store
        self._marks = needed_sentinels(tokenizer)
        self._of_bytes = isinstance(tokenizer, ByteTokenizer)
        starts = np.asarray(store.document_starts)
        lengths = np.diff(starts, append=len(store))
        numbers = np.arange(len(starts), dtype=np.uint64)
        chance, order, *self._draws = (
            mix(mix(numbers) ^ np.uint64(key)) for key in random_words(f"infilling documents {seed}", 4)
        )
        self._is_cut = (chance.astype(np.float64) < config.rate * 2.0**64) & (lengths > LEAST)
        self._spm = order.astype(np.float64) < config.spm * 2.0**64
        self._starts = np.append(0, np.cumsum(lengths + _ADDED * self._is_cut))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, length: int) -> Int[np.ndarray, "{length}"]:
        """int64 ids of the tokens at `start` ... `start + length - 1`."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        parts: list[np.ndarray] = []
        left = length
        while left:
            begin = start - int(self._starts[first]) if not parts else 0
            size = min(left, int(self._starts[first + 1] - self._starts[first]) - begin)
            parts.append(self._read_document(first, begin, size))
            left -= size
            first += 1
        return np.concatenate(parts)

    def document_ids(self, start: int, length: int) -> Int[np.ndarray, "{length}"]:
        """int32 number, within the split, of the document that each of these tokens belongs to."""
        positions = np.arange(start, start + length)
        return (np.searchsorted(self._starts, positions, side="right") - 1).astype(np.int32)

    def _read_document(self, number: int, begin: int, size: int) -> np.ndarray:
        """A part of a document, which may be long: no more than that is read."""
        at = int(self.store.document_starts[number])
        if not self._is_cut[number]:
            return self.store.read(at + begin, size)
        text = int(self._starts[number + 1] - self._starts[number]) - _ADDED - 1
        first, last = sorted(self._place(at, int(draw[number]) % (text + 1), text) for draw in self._draws)
        marks, prefix, middle, suffix = self._marks, (0, first), (first, last), (last, text)
        pieces: list[int | tuple[int, int]] = [marks.prefix, prefix, marks.suffix, suffix, marks.middle, middle]
        if self._spm[number]:
            pieces = [marks.prefix, marks.suffix, suffix, marks.middle, prefix, middle]
        parts: list[np.ndarray] = []
        place = 0
        for piece in [*pieces, self._marks.end]:
            source, stop = piece if isinstance(piece, tuple) else (0, 1)
            low, high = max(begin - place, 0), min(begin + size - place, stop - source)
            if low < high:
                is_text = isinstance(piece, tuple)
                parts.append(self.store.read(at + source + low, high - low) if is_text else np.array([piece]))
            place += stop - source
        return np.concatenate(parts)

    def _place(self, at: int, place: int, text: int) -> int:
        """Where a document is cut."""
        return character_start(place, text, lambda i: int(self.store.read(at + i, 1)[0])) if self._of_bytes else place
