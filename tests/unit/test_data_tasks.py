"""Synthetic tasks: training and test examples never meet, windows hold what they should, graphs are star graphs."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from mtp_lightning.data.tasks.datamodule import TaskDataModule, TaskWindows, one_a_row, packed
from mtp_lightning.data.tasks.polynomial import Polynomial
from mtp_lightning.data.tasks.star_graph import StarGraph
from mtp_lightning.data.tasks.task import TEST_SHARE, Examples, Task, is_test, joined
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.objective.targets import make_targets

TASKS = [StarGraph(2, 3, 8), Polynomial(modulus=5, degree=2, train_operations=2, test_operations=3)]


def questions(examples: Examples) -> set[bytes]:
    return {row[:end].tobytes() for row, end in zip(examples.tokens, examples.answer_starts)}


def meanings(task: Task, examples: Examples) -> set[str]:
    """What is asked, read as text: of a star graph its set of edges, start and goal."""
    texts = [task.text(row[:end]) for row, end in zip(examples.tokens, examples.answer_starts)]
    return {
        " ".join(sorted(text.split(" / ")[0].removesuffix(" |").split(" | "))) + text.split(" / ")[-1] for text in texts
    }


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_training_never_sees_a_test_question(task: Task) -> None:
    trained = meanings(task, joined([task.train(seed, index, 500) for seed in range(2) for index in range(5)]))
    tested = {name: meanings(task, test) for name, test in task.test_sets(40).items()}
    for name, asked in tested.items():
        assert len(asked) == 40
        assert not asked & trained, name


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_one_question_in_eight_is_for_tests(task: Task) -> None:
    share = is_test(task.draw(np.random.default_rng(0), 20_000)).mean()
    assert share == pytest.approx(1 / TEST_SHARE, abs=0.02)


def test_padding_does_not_decide_the_side() -> None:
    task = TASKS[1]
    drawn = task.draw(np.random.default_rng(0), 200)
    wider = Examples(np.pad(drawn.tokens, ((0, 0), (0, 5))), drawn.lengths, drawn.answer_starts)
    alone = [is_test(drawn.take(np.array([i])))[0] for i in range(200)]
    assert np.array_equal(is_test(wider), alone)


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_examples_are_a_function_of_seed_and_index(task: Task) -> None:
    first = task.train(3, 7, 64)
    assert np.array_equal(first.tokens, task.train(3, 7, 64).tokens)
    assert len(first.lengths) == 64
    for other in (task.train(4, 7, 64), task.train(3, 8, 64)):
        assert questions(first) != questions(other)


def test_a_test_set_larger_than_the_space_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.test_size is 100, and polynomial 'm_1' has 14 different questions"):
        Polynomial(modulus=2, degree=1).test("m_1", 100)


@pytest.mark.parametrize(("degree", "length"), [(2, 2), (2, 5), (3, 4), (5, 3)])
def test_star_graphs_are_star_graphs(degree: int, length: int) -> None:
    """Read as text: every example's edges make one start with `degree` arms, and the answer is the arm asked for."""
    task = StarGraph(degree, length, labels=30)
    examples = task.draw(np.random.default_rng(0), 50)
    firsts = []
    for row in examples.tokens:
        edges_text, rest = task.text(row).split(" / ")
        ask, answer = rest.split(" = ")
        edges = [tuple(edge.split()) for edge in edges_text.removesuffix(" |").split(" | ")]
        start, goal = ask.split()
        path = answer.split()
        assert (path[0], path[-1], len(path)) == (start, goal, length)
        assert set(pairwise(path)) <= set(edges)
        assert len(edges) == len(set(edges)) == degree * (length - 1)
        assert sum(a == start for a, _ in edges) == degree
        assert len({b for _, b in edges} | {start}) == degree * (length - 1) + 1
        firsts.append(edges.index((path[0], path[1])) / (len(edges) - 1))
    assert 0.3 < np.mean(firsts) < 0.7, "the order of the edges tells nothing"
    assert examples.lengths.tolist() == [task.longest] * 50
    assert examples.is_answer.sum(axis=1).tolist() == [length] * 50


def test_the_questions_of_a_small_star_graph_are_counted_right() -> None:
    """G(3, 2) with 4 labels: every labelling, one path asked for; and all of them are drawn, in every order."""
    task = StarGraph(3, 2, 4)
    examples = task.draw(np.random.default_rng(0), 5000)
    assert len(meanings(task, examples)) == task.space("path") == 12
    assert len(questions(examples)) == 12 * 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"degree": 1}, r"data\.task\.degree is 1"),
        ({"length": 1}, r"data\.task\.length is 1"),
        ({"degree": 5, "length": 8}, r"data\.task\.labels is 30: G\(5, 8\) has 36 nodes"),
    ],
)
def test_graphs_that_cannot_be(settings: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        StarGraph(**settings)


def test_packed_windows_by_hand() -> None:
    """Examples of 3, 2, 4 and 5 tokens in windows of 4: each begins with a whole one, the last ones are cut."""
    tokens = np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0], [6, 7, 8, 9, 0], [10, 11, 12, 13, 14]])
    examples = Examples(tokens, np.array([3, 2, 4, 5]), np.array([2, 1, 3, 3]))
    batch = packed(examples, 4, 4, 2, answers_only=False)
    assert batch is not None
    assert batch["tokens"].tolist() == [[1, 2, 3, 4], [6, 7, 8, 9]]
    assert batch["documents"].tolist() == [[0, 0, 0, 1], [2, 2, 2, 2]]
    assert batch["loss_mask"].all()
    answers = packed(examples, 4, 4, 3, answers_only=True)
    assert answers is not None
    assert answers["tokens"].tolist()[2] == [10, 11, 12, 13]
    assert answers["loss_mask"].int().tolist() == [[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]]
    assert packed(examples, 4, 4, 4, answers_only=True) is None
    assert packed(examples, 15, 15, 1, answers_only=True) is None
    shorter = packed(examples, 3, 4, 2, answers_only=False)
    assert shorter is not None
    assert shorter["tokens"].tolist() == [[1, 2, 3], [6, 7, 8]], "where windows begin is a matter of room alone"


def test_one_a_row_masks_what_comes_after() -> None:
    examples = Examples(np.array([[1, 2, 3, 0], [4, 5, 6, 7]]), np.array([3, 4]), np.array([1, 3]))
    batch = one_a_row(examples, 6, answers_only=False)
    assert batch["tokens"].tolist() == [[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 0, 0]]
    assert batch["loss_mask"].int().tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
    assert one_a_row(examples, 6, answers_only=True)["loss_mask"].int().tolist() == [
        [0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0],
    ]  # fmt: skip


def make(task: Task = TASKS[0], **settings: Any) -> TaskDataModule:
    return TaskDataModule(task, **({"vocab_size": task.vocab_size, "batch_size": 4, "test_size": 6} | settings))


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("horizon", [1, 3])
def test_every_answer_token_is_some_heads_target(pack: bool, horizon: int) -> None:
    """One example a row: head i's valid targets are the answer's tokens, all of them."""
    data = make(horizon=horizon, answers_only=True, pack=pack, context=40 if pack else None)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    assert batch["tokens"].shape == (4, data.window)
    _, targets, valid, *_ = make_targets(HeadsConfig(horizon), batch["tokens"], None, batch["loss_mask"])
    for row, test in enumerate(data.test_sets["path"].take(np.arange(4)).tokens):
        for head in range(horizon):
            assert targets[head, row][valid[head, row]].tolist() == test[-3:].tolist()


@pytest.mark.parametrize("pack", [False, True])
def test_ranks_share_a_batch_and_a_resumed_run_sees_what_it_would_have(
    pack: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trainer:
        max_steps, accumulate_grad_batches, global_rank, world_size = 6, 1, 0, 1

    def batches(rank: int = 0, ranks: int = 1, skip: int = 0) -> list[torch.Tensor]:
        data = make(pack=pack, context=30)
        data.trainer = Trainer()  # type: ignore[assignment]
        monkeypatch.setattr(Trainer, "global_rank", rank)
        monkeypatch.setattr(Trainer, "world_size", ranks)
        loader = data.train_dataloader()
        loader.load_state_dict({"n_yielded": skip})
        return [batch["tokens"] for batch in loader]

    whole = torch.stack(batches())
    assert whole.shape == (6, 4, 31)
    assert torch.equal(torch.stack(batches(skip=4)), whole[4:])
    assert torch.equal(torch.stack(batches(1, 2)), whole[:, 1::2])


@pytest.mark.parametrize("pack", [False, True])
def test_models_with_any_number_of_heads_see_the_same_inputs(pack: bool) -> None:
    def inputs(horizon: int) -> torch.Tensor:
        data = make(TASKS[1], pack=pack, context=30, batch_size=8, horizon=horizon)
        return TaskWindows(data)[5]["tokens"][:, :30]

    assert torch.equal(inputs(1), inputs(4))


def test_validation_takes_every_set_that_fits_and_ranks_have_equally_many_rows() -> None:
    data = make(TASKS[1], val_examples=6, batch_size=4)
    data.setup("validate")
    assert data.test_sets["m_3"].lengths.max() > data.context + 1, "out of domain, and too long"
    (first, last) = data.val_dataloader()
    assert len(first["tokens"]) + len(last["tokens"]) == 6

    class Trainer:
        global_rank, world_size = 1, 4

    data.trainer = Trainer()  # type: ignore[assignment]
    rows = list(data.val_dataloader())
    assert [len(batch["tokens"]) for batch in rows] == [1, 1]
    assert [bool(batch["loss_mask"].any()) for batch in rows] == [True, True]
    Trainer.global_rank = 2
    assert [bool(batch["loss_mask"].any()) for batch in data.val_dataloader()] == [True, False], "a row too many"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 99}, r"model\.backbone\.vocab_size is 99, and the task .* has 11 symbols"),
        ({"context": 5}, r"data\.context is 5: the longest star_graph example has 19 tokens"),
        ({"test_size": 0}, r"data\.test_size is 0"),
        ({"num_workers": -1}, r"data\.num_workers is -1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**settings)


def test_a_checkpoint_of_another_task_is_refused() -> None:
    saved = make(StarGraph(2, 3, 8)).state_dict()
    make(StarGraph(2, 3, 8)).load_state_dict(saved)
    with pytest.raises(InputError, match=r"trained with data\.task = \{'name': 'star_graph', 'degree': 2"):
        make(StarGraph(2, 4, 8)).load_state_dict(saved)
    with pytest.raises(InputError, match=r"data\.answers_only = False"):
        make(StarGraph(2, 3, 8), answers_only=True).load_state_dict(saved)
