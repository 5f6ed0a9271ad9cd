"""Self-speculative decoding by its definition: read this first. The engine is the same thing made fast.

One text, greedy, no caches: the model reads the whole text again for every token. With the text x_1 ..
x_t, head 1 says the next token a_1, and the further heads guess those after it, a_2 .. a_k. The steps are those of
blockwise parallel decoding (Stern et al. 2018, section 3; the paper's section 3.2):

    1. predict   the block a_1 .. a_k. a_1 is certain, since it is what plain decoding says; the others are drafts.
    2. verify    one forward over x_1 .. x_t a_1 .. a_k gives head 1's choice after every token of the block.
    3. accept    the drafts, as long as each equals head 1's choice after the token before it: a_1 .. a_m, m >= 1.

Then the same again from x_1 .. x_t a_1 .. a_m. So one forward makes 1 to k tokens certain, and the text is plain
decoding's whatever the drafts are: a bad draft costs time and no quality. (Here predicting reads the text once more for
each draft. An engine with caches predicts out of the forward that has just verified, so a step is one forward.)
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.shapes import Float, Int


class Forward(NamedTuple):
    """One forward that verified a block."""

    accepted: list[int]
    block: list[int]


class Decoded(NamedTuple):
    tokens: list[int]
    """The new ones."""
    forwards: list[Forward]
    """After the prompt's. The last token of a text is certain without a forward of its own."""

    @property
    def tokens_per_forward(self) -> float:
        accepted = [len(forward.accepted) for forward in self.forwards]
        return sum(accepted) / len(accepted) if accepted else float("nan")


@torch.no_grad()
def decode_plainly(
    model: MTPModel, prompt: Int[Tensor, "T"], max_new_tokens: int, stop_ids: Collection[int] = ()
) -> list[int]:
    """Head 1's best token, again and again, until a stop token (kept as the last) or `max_new_tokens`."""
    text = prompt.tolist()
    for _ in range(max_new_tokens):
        text.append(next_tokens(model, text)[-1])
        if text[-1] in stop_ids:
            break
    return text[prompt.numel() :]


@torch.no_grad()
def decode_speculatively(
    model: MTPModel, prompt: Int[Tensor, "T"], max_new_tokens: int, heads_used: int, stop_ids: Collection[int] = ()
) -> Decoded:
    """The same tokens, in fewer forwards."""
    text, forwards = prompt.tolist(), []
    left = max_new_tokens
    while left > 0:
        block = predict(model, text, heads_used)  # 1.
        if left == 1 or block[0] in stop_ids:
            text.append(block[0])
            break
        chosen = next_tokens(model, text + block)[len(text) :]  # 2.
        accepted = block[: count_right(block, chosen)][:left]  # 3.
        stops = [i for i, token in enumerate(accepted, start=1) if token in stop_ids]
        accepted = accepted[: stops[0]] if stops else accepted
        forwards.append(Forward(accepted, block))
        text += accepted
        left = 0 if stops else left - len(accepted)
    return Decoded(text[prompt.numel() :], forwards)


def predict(model: MTPModel, text: Sequence[int], heads_used: int) -> list[int]:
    """The certain token after `text` and the drafts after that. Heads that leap leave gaps; the draft for a gap is the
    next further head's, from as many positions before the last as that head looks too far."""
    offsets = model.heads_config.head_offsets[:heads_used]
    block = [next_tokens(model, text)[-1]]
    for ahead in range(2, offsets[-1] + 1):
        head = next(i for i, offset in enumerate(offsets) if offset >= ahead)
        position = max(len(text) - 1 - (offsets[head] - ahead), 0)
        block.append(int(head_logits(model, text, [*text, *block])[head, position].argmax()))
    return block


def count_right(block: Sequence[int], chosen: Sequence[int]) -> int:
    """How many tokens of a block are right: the first, and each further one while it is head 1's choice (`chosen`)
    after the one before it."""
    count = 1
    while count < len(block) and block[count] == chosen[count - 1]:
        count += 1
    return count


def next_tokens(model: MTPModel, text: Sequence[int]) -> list[int]:
    """Head 1's best next token after each token of `text`."""
    tokens = torch.tensor([text], device=model.embedding.weight.device)
    best: list[int] = model.unembedding(model.next_token_states(tokens))[0].argmax(-1).tolist()
    return best


@torch.no_grad()
def head_logits(model: MTPModel, text: Sequence[int], known: Sequence[int]) -> Float[Tensor, "S T V"]:
    """Logits of every head at every position of `text`. `known` begins with it and may go on: heads of kind
    `sequential`, `recurrent`, `next_latent`, `fetch`, `markov` and `mixture` read the tokens before their target,
    drafts among them."""
    device, T = model.embedding.weight.device, len(text)
    tokens = torch.tensor([*known, *[0] * model.heads_config.horizon], device=device)
    targets = torch.stack([tokens[offset : offset + T] for offset in model.heads_config.head_offsets])
    return model.logits(tokens[None, :T], None, targets[:, None])[:, 0]
