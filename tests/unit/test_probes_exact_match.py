"""Exact match in one forward against real greedy decoding, question by question."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sampled import one_in
from tiny import VARIANTS, tiny_backbone
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mtp_lightning.data.tasks.polynomial import Polynomial
from mtp_lightning.data.tasks.star_graph import StarGraph
from mtp_lightning.data.tasks.task import Examples, Task
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import generate
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective.chunked import default_chunk_rows
from mtp_lightning.probes.exact_match import answer, exact_match

TASKS = [StarGraph(2, 2, 5), Polynomial(modulus=2, degree=1, train_operations=2, test_operations=3)]
"""Small enough that a random model is right now and then."""


def greedy(model: MTPModel, examples: Examples) -> list[bool]:
    """Whether plain decoding writes each answer."""
    rows = list(zip(examples.tokens, examples.answer_starts, examples.lengths))
    questions = [torch.from_numpy(row[:start]) for row, start, _ in rows]
    longest = max(int(length - start) for _, start, length in rows)
    said = [list(out.tokens) for out in generate(Engine(model), questions, longest, heads_used=1)]
    return [text[: length - start] == row[start:length].tolist() for text, (row, start, length) in zip(said, rows)]


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("task", one_in(2, TASKS), ids=lambda t: t.name)
def test_one_forward_says_what_decoding_would(task: Task, make_model: Callable[..., MTPModel]) -> None:
    examples = task.draw(np.random.default_rng(0), 200)
    hits = 0
    for seed in range(3):
        model = make_model(n_future=2, n_layers=3, seed=seed, vocab_size=task.vocab_size)
        with torch.no_grad():
            model.unembedding.weight[task.vocab_size - 4 :] = 0.0  # so that it says digits
        expected = greedy(model, examples)
        assert answer(model, examples).exact.tolist() == expected
        hits += sum(expected)
    assert 0 < hits < 600, "neither all right nor all wrong"


def test_answers_of_different_lengths(make_model: Callable[..., MTPModel]) -> None:
    """What comes after a short answer's end is not judged; here nothing in it is ever right."""
    model = make_model(vocab_size=16)
    question = torch.tensor([[1, 2, 3]])
    said = list(generate(Engine(model), list(question), 3, heads_used=1)[0].tokens)
    wrong = [(token + 1) % 16 for token in said]
    rows = np.array([[1, 2, 3, *said], [1, 2, 3, said[0], *wrong[1:]], [1, 2, 3, said[0], wrong[1], 0]])
    examples = Examples(rows, np.array([6, 4, 5]), np.array([3, 3, 3]))
    assert answer(model, examples).exact.tolist() == [True, True, False]


class Largest(TorchDispatchMode):
    """How many elements the largest tensor has that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        found = [one.numel() for one in tree_leaves(made) if isinstance(one, torch.Tensor)]
        self.elements = max([self.elements, *found])
        return made


def test_logits_do_not_grow_with_the_answers(make_model: Callable[..., MTPModel]) -> None:
    model = make_model(vocab_size=2048)
    rows, answers = 64, 64
    tokens = np.random.default_rng(0).integers(0, 2048, (rows, answers + 2))
    with Largest() as largest:
        answer(model, Examples(tokens, np.full(rows, answers + 2), np.full(rows, 2)))
    assert largest.elements <= default_chunk_rows(2048, torch.device("cpu")) * 2048 < rows * answers * 2048


@pytest.mark.parametrize("name", VARIANTS)
def test_head_1_alone_is_head_1_of_all(name: str) -> None:
    torch.manual_seed(0)
    model = MTPModel(tiny_backbone(n_layers=7), VARIANTS[name]).eval()
    tokens = torch.randint(16, (2, 9))
    ahead = torch.randint(16, (model.n_future, 2, 9))
    torch.testing.assert_close(model.next_token_states(tokens), model(tokens, None, ahead)[0, ..., : model.config.dim])


def test_metrics_of_sets_averages_and_places(make_model: Callable[..., MTPModel]) -> None:
    task = Polynomial(modulus=2, degree=1, train_operations=2, test_operations=3)
    model = make_model(vocab_size=task.vocab_size)
    sets = {name: task.draw_test(np.random.default_rng(1), 30, name) for name in task.test_names}
    found = exact_match(model, task, sets)
    assert set(found) == {"m_1", "m_2", "m_3", "in_domain", "out_of_domain"}
    assert found["in_domain"] == pytest.approx((found["m_1"] + found["m_2"]) / 2)
    assert found["out_of_domain"] == found["m_3"]
    graphs = StarGraph(2, 3, 6)
    model = make_model(vocab_size=graphs.vocab_size)
    examples = graphs.draw(np.random.default_rng(0), 50)
    said = exact_match(model, graphs, {"path": examples})
    assert set(said) == {"path", "branch"}
    logits = model.unembedding(model.next_token_states(torch.from_numpy(examples.tokens)))
    second = logits[:, graphs.longest - 3].argmax(-1)  # after the start, which the answer begins with
    assert said["branch"] == pytest.approx((second.numpy() == examples.tokens[:, -2]).mean())
