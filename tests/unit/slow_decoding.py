"""Decoding by its definition: the whole text through the whole model for every token, no cache, one row at a time."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from mtp_lightning.model.mtp import MTPModel


@torch.no_grad()
def head_logits(model: MTPModel, text: Sequence[int], known: Sequence[int]) -> Tensor:
    """(S, T, V): logits of every head at every position of `text`; `known` continues it for heads that read on."""
    tokens = list(known) + [0] * model.heads_config.horizon
    ahead = [tokens[place : place + len(text)] for place in model.heads_config.places]
    return model.logits(torch.tensor([text]), None, torch.tensor(ahead)[:, None])[:, 0]


def greedy(model: MTPModel, prompt: Tensor, max_new_tokens: int, stop_ids: Collection[int] = ()) -> list[int]:
    """Head 1's best token, again and again."""
    text = prompt.tolist()
    for _ in range(max_new_tokens):
        text.append(int(head_logits(model, text, text)[0, -1].argmax()))
        if text[-1] in stop_ids:
            break
    return text[prompt.numel() :]


def draft(model: MTPModel, text: Sequence[int], heads_used: int) -> list[int]:
    """The certain token behind `text` and what the further heads propose, place by place: of the heads in use, the
    nearest that looks so far or further, from as many positions before the last as it looks too far."""
    known = [*text, int(head_logits(model, text, text)[0, -1].argmax())]
    places = model.heads_config.places[:heads_used]
    for place in range(2, places[-1] + 1):
        head = next(i for i, looks in enumerate(places) if looks >= place)
        position = max(len(text) - 1 - (places[head] - place), 0)
        known.append(int(head_logits(model, text, known)[head, position].argmax()))
    return known[len(text) :]


def blocks(model: MTPModel, prompt: Tensor, output: list[int], heads_used: int) -> list[tuple[list[int], list[int]]]:
    """(accepted tokens, block) of every forward that greedy draft and verify takes for `output`."""
    text, steps, done = prompt.tolist(), [], 0
    while done < len(output) - 1:
        block = draft(model, text, heads_used)
        size = 1
        while size < min(len(block), len(output) - done) and block[size] == output[done + size]:
            size += 1
        steps.append((block[:size], block))
        text += block[:size]
        done += size
    return steps
