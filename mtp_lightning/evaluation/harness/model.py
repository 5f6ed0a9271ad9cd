"""A model of the platform as lm-eval's language model: log-likelihoods by trunk and head 1, texts by the engine.

Its numbers are those of lm-eval's own `hf` model on the exported Llama (tested): the same truncation from the left, the
same windows for perplexity, the same first token before texts (Llama's <s>, counted in perplexity and lost where a
prompt is too long, as there), the same token before an empty context.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import HeadsUsed
from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.benchmark import fit_prompt
from mtp_lightning.evaluation.evaluate import Subject
from mtp_lightning.evaluation.samples import Prompt
from mtp_lightning.evaluation.write_samples import Writing, prompt_room, write_batch
from mtp_lightning.shapes import Int

NO_CONTEXT = 2048
"""Positions of a model of which nobody knows on what windows it was trained."""
MAX_NEW_TOKENS = 256
"""Where a task does not say, as in lm-eval; at most half of the context."""
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_NOTED = {"until", "do_sample", "temperature", "top_p", "top_k", *_LENGTHS}

Request = tuple[Any, list[int], list[int]]
"""(what it is, tokens of the context, tokens to be scored)"""


class MTPLanguageModel(TemplateLM):  # type: ignore[misc]
    """
    Args:
        dtype: of the model's weights, and what texts are written in.
    """

    def __init__(self, subject: Subject, batch_size: int = 16, heads_used: HeadsUsed = "auto", seed: int = 0) -> None:
        super().__init__()
        self.subject, self.batch_size, self.heads_used, self.seed = subject, batch_size, heads_used, seed
        self.model = subject.model.eval()
        self._device = self.model.embedding.weight.device  # what its property `device` gives
        self.max_length = subject.context or NO_CONTEXT
        self.counts: Counter[str] = Counter()
        """Of the texts written, as `write_batch` counts."""
        self._engine: Engine | None = None
        self._asked: Counter[str] = Counter()

    @property
    @override
    def eot_token_id(self) -> int:
        return self.subject.tokenizer.eos_id

    @property
    @override
    def prefix_token_id(self) -> int:
        """What goes before an empty context, and before the first window of a text."""
        return self.subject.begin_ids[0] if self.subject.begin_ids else self.eot_token_id

    @override
    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        begin = () if add_special_tokens is False else self.subject.begin_ids
        return [*begin, *self.subject.tokenizer.encode(string)]

    @override
    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: Any) -> list[tuple[float, bool]]:
        """(sum of log-probabilities, whether greedy decoding would write it) of every continuation. The longest first:
        what does not fit into memory is found out at once.

        Raises:
            InputError: a continuation that is empty, or longer than the context.
        """
        for length in (len(wanted) for *_context, wanted in requests):
            if not 1 <= length <= self.max_length:
                raise InputError(
                    f"it asks for a continuation of {length:,} tokens, which has to have at least 1, and at most the "
                    f"{self.max_length:,} of the model's context"
                )
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1]) - len(requests[i][2]))
        found: dict[int, tuple[float, bool]] = {}
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            found |= dict(zip(batch, self._score([requests[i][1:] for i in batch])))
        return [found[i] for i in range(len(requests))]

    @torch.no_grad()
    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        texts = [(context + wanted)[-self.max_length - 1 :] for context, wanted in pairs]
        longest = max(map(len, texts)) - 1
        tokens_BT = torch.zeros(len(texts), longest, dtype=torch.long)
        for row, text in enumerate(texts):  # what comes after a text is seen by none of its positions
            tokens_BT[row, : len(text) - 1] = torch.tensor(text[:-1])
        h_BTD = self.model.next_token_states(tokens_BT.to(self.device))
        scores = []
        for h_TD, text, (_, wanted) in zip(h_BTD, texts, pairs):
            target_C = torch.tensor(text[-len(wanted) :], device=self.device)
            last = len(text) - 1
            scores.append(self._score_one(h_TD[last - len(target_C) : last], target_C))
        return scores

    def _score_one(self, h_CD: Tensor, target_C: Int[Tensor, "C"]) -> tuple[float, bool]:
        log_probabilities_CV = F.log_softmax(self.model.unembedding(h_CD).float(), dim=-1)
        score = log_probabilities_CV.gather(1, target_C[:, None]).sum()
        return float(score), bool((log_probabilities_CV.argmax(-1) == target_C).all())

    @override
    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, each token scored once, in windows of the context's length."""
        windows: list[Request] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        sums = [0.0] * len(requests)
        for number, (score, _) in zip(owners, self._loglikelihood_tokens(windows)):
            sums[number] += score
        return sums

    @override
    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Of requests that sample, the n-th with the same context has a seed of its own."""
        written: list[str] = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        for numbers in groups.values():
            writing = self._writing(requests[numbers[0]].args[1])
            room = prompt_room(self.max_length, writing.max_new_tokens)
            asked = [self._ask(requests[number].args[0], room) for number in numbers]
            for start in range(0, len(asked), self.batch_size):
                batch = asked[start : start + self.batch_size]
                samples, counts = write_batch(self.engine, self.subject.tokenizer, writing, batch)
                self.counts.update(counts)
                for number, sample in zip(numbers[start:], samples):
                    written[number] = sample.completion
        return written

    @property
    def engine(self) -> Engine:
        """Made when a task asks for texts."""
        if self._engine is None:
            most = self.model.heads_config.max_heads_used
            self._engine = Engine(self.model, most if self.heads_used == "auto" else self.heads_used)
        return self._engine

    def _ask(self, context: str, room: int | None) -> tuple[Prompt, int]:
        number = self._asked[context]
        self._asked[context] += 1
        return fit_prompt(context, self.tok_encode(context), self.subject.tokenizer, room), number

    def _writing(self, settings: dict[str, Any]) -> Writing:
        """
        Raises:
            InputError: a task that wants its texts chosen in a way that the engine does not know.
        """
        unknown = {key for key, value in settings.items() if key not in _NOTED and value not in (None, False, 1, 1.0)}
        if unknown or settings.get("top_k"):
            named = ", ".join(sorted(unknown) or ["top_k"])
            raise InputError(f"a task's generation_kwargs ask for {named}, which is not known here")
        temperature = float(settings.get("temperature") or 0.0)
        if not settings.get("do_sample", temperature > 0):
            temperature = 0.0
        elif temperature == 0:
            temperature = 1.0
        stops = settings.get("until") or []
        lengths = [settings[key] for key in _LENGTHS if settings.get(key) is not None]
        return Writing(
            temperature,
            settings.get("top_p") if temperature else None,
            self.seed,
            int(lengths[0]) if lengths else min(MAX_NEW_TOKENS, self.max_length // 2),
            tuple(_texts([stops] if isinstance(stops, str) else stops)),
            heads_used=self.heads_used,
            batch_size=self.batch_size,
        )


def _texts(stops: Iterable[str]) -> list[str]:
    return [stop for stop in stops if stop]
