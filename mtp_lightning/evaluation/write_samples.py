"""A model writes samples: batches through the engine, self-speculative, stops found in the text.

A stop string may begin inside one token and end inside another, so it is looked for in the decoded text. What a text
would have been without drafts decides: it ends with the first token after which a stop is whole, and is cut where the
stop begins.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch

from mtp_lightning.data.tokens.token_bytes import token_bytes
from mtp_lightning.data.tokens.tokenizer import Tokenizer
from mtp_lightning.decoding.choosing import Sampling
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import Generation, HeadsUsed, Step, count_bytes, stream
from mtp_lightning.decoding.measure import acceptance_counts
from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.samples import Ended, Prompt, Sample, SampleFile, sample_seed

_BROKEN = "\ufffd"
_LEAD = 8
"""Tokens of a prompt, at most, of which its last characters are made."""


@dataclass(frozen=True)
class Writing:
    """How samples are written; all of it but `heads_used` and `batch_size` says what they will be."""

    temperature: float
    top_p: float | None
    seed: int
    max_new_tokens: int
    stops: tuple[str, ...] = ()
    """Strings that end a text, and are no part of it."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that do, besides the end-of-document token."""
    heads_used: HeadsUsed = "auto"
    batch_size: int = 16
    begin_ids: tuple[int, ...] = ()
    """Tokens that go before every prompt."""

    def sampling(self, asked: Sequence[tuple[Prompt, int]]) -> Sampling:
        if self.temperature == 0:
            return Sampling()
        seeds = tuple(sample_seed(self.seed, prompt.task_id, number) for prompt, number in asked)
        return Sampling(self.temperature, top_p=self.top_p, seeds=seeds)


def prompt_room(context: int | None, max_new_tokens: int) -> int | None:
    """Tokens that a prompt may have; None: any number.

    Raises:
        InputError: the context has no room for prompt and answer.
    """
    if context is None:
        return None
    if max_new_tokens >= context:
        raise InputError(
            f"max_new_tokens is {max_new_tokens}, and the model was trained on windows of {context} tokens: "
            f"it has to be at most {context - 1}, and leave room for the prompt"
        )
    return context - max_new_tokens


Asked = Sequence[tuple[Prompt, int]]
"""(prompt, number of the sample) of each text that is asked for."""
Write = Callable[[Asked], tuple[list[Sample], dict[str, int]]]
"""What makes a batch of samples, and counts over them."""


def write_samples(
    file: SampleFile,
    write: Write,
    prompts: Sequence[Prompt],
    samples: int,
    batch_size: int,
    report: Callable[[int, int], None] = lambda done, all_: None,
) -> None:
    """Add to the file what it lacks of `samples` of every prompt, sample 0 of all of them first.

    Args:
        report: called with (samples in the file, all that are wanted) after every batch.
    """
    asked = [(p, s) for s in range(samples) for p in prompts if (p.task_id, s) not in file.samples]
    all_ = samples * len(prompts)
    report(all_ - len(asked), all_)
    for start in range(0, len(asked), batch_size):
        batch = asked[start : start + batch_size]
        file.append(*write(batch))
        report(all_ - len(asked) + start + len(batch), all_)


def write_batch(
    engine: Engine, tokenizer: Tokenizer, writing: Writing, asked: Asked
) -> tuple[list[Sample], dict[str, int]]:
    """A sample for each (prompt, number), and counts over them: `tokens`; `accepted` of them in `forwards` after the
    prompts', which are `bytes`; and of every drafting head i how many drafts had their `turns_i` and were `right_i`."""
    texts = [_Text(tokenizer, prompt.ids, writing.stops) for prompt, _ in asked]
    steps: list[list[Step]] = [[] for _ in asked]
    ended: set[int] = set()
    ids = [torch.tensor([*writing.begin_ids, *prompt.ids], device=engine.device) for prompt, _ in asked]
    ends = {tokenizer.eos_id, *writing.stop_ids}
    heads, most = writing.heads_used, writing.max_new_tokens
    for step in stream(engine, ids, most, heads, ends, writing.sampling(asked), ended=ended):
        if step.row in ended:
            continue
        kept = texts[step.row].take(step.tokens)
        if step.block:
            steps[step.row].append(step._replace(tokens=step.tokens[:kept]))
        if texts[step.row].stopped_at is not None:
            ended.add(step.row)
    written = [
        Sample(prompt.task_id, number, text.completion, text.how_ended(ends), prompt.cut)
        for (prompt, number), text in zip(asked, texts)
    ]
    return written, dict(_counts(texts, steps, engine, tokenizer))


def _counts(
    texts: "Sequence[_Text]", steps: Sequence[Sequence[Step]], engine: Engine, tokenizer: Tokenizer
) -> Iterator[tuple[str, int]]:
    yield "tokens", sum(len(text.ids) for text in texts)
    yield "accepted", sum(len(step.tokens) for of_text in steps for step in of_text)
    yield "forwards", sum(map(len, steps))
    sizes = token_bytes(tokenizer)
    yield "bytes", sum(count_bytes(of_text, sizes) for of_text in steps)
    generations = [Generation([], list(of_text)) for of_text in steps]
    offsets = engine.heads.head_offsets[: engine.heads_used]
    for head, (right, turns) in acceptance_counts(generations, offsets).items():
        yield f"right_{head}", right
        yield f"turns_{head}", turns


class _Text:
    """What follows a prompt, as it grows."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        # Decoded with the prompt's last character: a tokenizer may treat the first word of a text in a way of its own.
        # A sentinel is none, nor is a space that a decoder takes away.
        tails = [list(prompt[-count:]) for count in range(1, _LEAD + 1)]
        texts = list(map(tokenizer.decode, tails))
        self.lead = next((tail for tail, text in zip(tails, texts) if text and _BROKEN not in text), tails[0])
        self.start = len(tokenizer.decode(self.lead))
        self.ids: list[int] = []
        self.stopped_at: int | None = None
        """Where in the text a stop string begins."""

    def take(self, tokens: Sequence[int]) -> int:
        """Add tokens up to the one that makes a stop string whole; how many there were of these. Looked at one by one:
        where bytes are tokens, half a character makes the bytes before it unreadable, and takes a stop back."""
        for added, token in enumerate(tokens, start=1):
            self.ids.append(token)
            self.stopped_at = self._first_stop() if self.stops else None
            if self.stopped_at is not None:
                return added
        return len(tokens)

    @property
    def completion(self) -> str:
        return self._text()[: self.stopped_at]

    def how_ended(self, ends: Collection[int]) -> Ended:
        if self.stopped_at is not None:
            return "stop"
        return "end" if self.ids and self.ids[-1] in ends else "length"

    def _first_stop(self) -> int | None:
        text = self._text()
        found = [place for place in map(text.find, self.stops) if place >= 0]
        return min(found, default=None)

    def _text(self) -> str:
        return self.tokenizer.decode([*self.lead, *self.ids])[self.start :]
