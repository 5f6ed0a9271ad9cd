"""Attention inside documents without a T x T mask: what a position may look at is said by the borders of documents.

Example of a row, and its spans where SPAN is 4:

    documents  a a a a a b c c | spans  a a a a a     plainly causal, one document
                               |        b c c         two short ones together, under a small mask

On a CPU attention runs span by span: its cost is that of the documents, not of the window. Short documents share a
span, so that a window of many has few calls. On CUDA, flex attention skips the blocks that no document reaches.
The mask of all positions (`Documents.mask`) is the oracle of both.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable imports the compiler at once: a second
from torch.nn import functional as F

from mtp_lightning.shapes import Bool, Float, Int

SPAN = 128
"""Positions up to which short documents share a span: a mask of so few costs less than a call for each."""


def causal_mask(n_new: int, n_total: int, device: torch.device) -> Bool[Tensor, "T S"]:
    """True where the i-th of the last `n_new` of `n_total` positions may look: at itself and before."""
    return torch.ones(n_new, n_total, dtype=torch.bool, device=device).tril(n_total - n_new)


def document_mask(documents_BT: Int[Tensor, "B T"]) -> Bool[Tensor, "B 1 T T"]:
    """True where a position may look: at itself and before, inside its own document."""
    T = documents_BT.shape[1]
    same = documents_BT[:, :, None] == documents_BT[:, None, :]
    return (same & causal_mask(T, T, documents_BT.device))[:, None]


class Span(NamedTuple):
    """Positions of a row that no position outside looks at, nor looks out of."""

    length: int
    documents: int


class Documents:
    """Which positions are of one document, in every row of a batch.

    Args:
        documents_BT: ids that change at every border; padding is a document like any other.
    """

    def __init__(self, documents_BT: Int[Tensor, "B T"]) -> None:
        border_BT = torch.zeros_like(documents_BT, dtype=torch.bool)
        border_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
        self.numbered_BT = border_BT.cumsum(1)
        """From 0 in each row."""

    @functools.cached_property
    def mask(self) -> Bool[Tensor, "B 1 T T"]:
        """Of all positions: B T^2 bytes."""
        return document_mask(self.numbered_BT)

    @functools.cached_property
    def spans(self) -> list[list[Span]]:
        """Of each row, in order."""
        return [_spans(row) for row in self.numbered_BT.tolist()]

    @functools.cached_property
    def block_mask(self) -> Any:
        """Flex attention's: which of its blocks of 128 x 128 positions have anything to do, and what inside them."""
        from torch.nn.attention.flex_attention import create_block_mask

        numbered_BT = self.numbered_BT
        may_look: Any = lambda b, _, query, key: (query >= key) & (numbered_BT[b, query] == numbered_BT[b, key])  # noqa: E731
        B, T = numbered_BT.shape
        on_gpu = numbered_BT.device.type == "cuda"  # compiled, it makes no T x T tensor on the way
        return create_block_mask(may_look, B, None, T, T, device=str(numbered_BT.device), _compile=on_gpu)


class WithRegisters:
    """Of T tokens and then their T registers (kind `registers`): no token sees a register; a register sees the text up
    to its own token, which it stands after, and itself, and no other register.

    Example of three tokens; rows look at columns:

                    a b c  A B C
        text     a  1
                 b  1 1
                 c  1 1 1
        register A  1      1
                 B  1 1      1
                 C  1 1 1      1

    Args:
        text: documents of the text that do not see each other; None: everything before.
        length: T.
    """

    def __init__(self, text: Documents | None, length: int, device: torch.device) -> None:
        self.text = text
        self.of_registers = None if device.type == "cpu" else self._of_registers(length, device)
        """Of all registers over text and registers, (1 or B, 1, T, 2 T); where attention goes by blocks, None."""

    def sees_text(self, rows: slice, device: torch.device) -> Bool[Tensor, "#B 1 R S"]:
        """Of the registers after these tokens, over the text up to the last of them."""
        seen = causal_mask(rows.stop - rows.start, rows.stop, device)[None, None]
        if self.text is None:
            return seen
        numbered_BT = self.text.numbered_BT
        return seen & (numbered_BT[:, None, rows, None] == numbered_BT[:, None, None, : rows.stop])

    def _of_registers(self, length: int, device: torch.device) -> Tensor:
        text = self.sees_text(slice(0, length), device)
        return torch.cat((text, torch.eye(length, dtype=torch.bool, device=device).expand_as(text)), dim=-1)


Mask = Bool[Tensor, "..."] | Documents | WithRegisters | None
"""What positions may look at: True in a tensor, those of their own document, or everything before."""


def _spans(numbered_T: list[int]) -> list[Span]:
    """Consecutive documents together while they have at most SPAN positions."""
    lengths = [0] * (numbered_T[-1] + 1)
    for number in numbered_T:
        lengths[number] += 1
    spans = [Span(lengths[0], 1)]
    for length in lengths[1:]:
        if spans[-1].length + length <= SPAN:
            spans[-1] = Span(spans[-1].length + length, spans[-1].documents + 1)
        else:
            spans.append(Span(length, 1))
    return spans


@_disable_dynamo
def attention_by_spans(
    q_BHTE: Float[Tensor, "B H T E"],
    k_BHTE: Float[Tensor, "B H T E"],
    v_BHTE: Float[Tensor, "B H T E"],
    documents: Documents,
    causal: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Float[Tensor, "B H T E"]:
    """
    Args:
        causal: plain causal attention.
    """
    rows = []
    for b, spans in enumerate(documents.spans):
        lengths = [span.length for span in spans]
        # `split` on purpose: the gradients of slices would each be as long as the row
        parts = zip(*(torch.split(x[b : b + 1], lengths, dim=2) for x in (q_BHTE, k_BHTE, v_BHTE)))
        masks = torch.split(documents.numbered_BT[b : b + 1], lengths, dim=1)
        done = [
            causal(q, k, v)
            if span.documents == 1
            else F.scaled_dot_product_attention(q, k, v, attn_mask=document_mask(numbered))
            for (q, k, v), span, numbered in zip(parts, spans, masks)
        ]
        rows.append(torch.cat(done, dim=2))
    return torch.cat(rows)


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@_disable_dynamo
def attention_by_flex(
    q_BHTE: Float[Tensor, "B H T E"],
    k_BKTE: Float[Tensor, "B K T E"],
    v_BKTE: Float[Tensor, "B K T E"],
    documents: Documents,
) -> Float[Tensor, "B H T E"]:
    """Compiled on CUDA; elsewhere plain, forward only, to be compared with."""
    from torch.nn.attention.flex_attention import flex_attention

    run: Any = _compiled_flex() if q_BHTE.device.type == "cuda" else flex_attention
    grouped = q_BHTE.shape[1] != k_BKTE.shape[1]
    return run(q_BHTE, k_BKTE, v_BKTE, block_mask=documents.block_mask, enable_gqa=grouped)  # type: ignore[no-any-return]
