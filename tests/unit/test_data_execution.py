"""Programs and their values: the ground truth is plain Python on the text; the sides of the split never touch."""

import random
import re
from collections import Counter
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from mtp_lightning.data.tasks.execution import SYMBOLS, Execution
from mtp_lightning.data.tasks.programs import LARGEST, MOST_LETTERS, draw_program
from mtp_lightning.data.tasks.task import Examples
from mtp_lightning.errors import InputError
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.probes import exact_match as probe
from mtp_lightning.probes.exact_match import exact_match, written

BOTH = Execution(train_operations=3, test_operations=5, predict="both")


def texts(task: Execution, examples: Examples) -> list[tuple[str, str]]:
    """(question, answer) as text."""
    rows = zip(examples.tokens, examples.lengths, examples.answer_starts)
    return [(task.text(row[:start]), task.text(row[start:length])) for row, length, start in rows]


def function(text: str) -> Any:
    scope: dict[str, Any] = {}
    exec(text, scope)
    return scope["f"]


@pytest.mark.parametrize("asked", ["output", "input"])
@pytest.mark.parametrize("m", [1, 4, 6])
def test_answers_are_pythons(asked: str, m: int) -> None:
    task = Execution(predict=asked)  # type: ignore[arg-type]
    examples = task.draw_test(np.random.default_rng(0), 150, f"m_{m}" if asked == "output" else f"input_m_{m}")
    for question, answer in texts(task, examples):
        assert answer.endswith("\n")
        value = answer.removesuffix("\n")
        if asked == "output":
            scope: dict[str, Any] = {}
            exec(f"{question}{value}", scope)  # the assertion of the question holds
            call = re.search(r"assert f\((.*)\) == $", question)
            assert call is not None
            assert repr(scope["f"](eval(call[1]))) == value
        else:
            wanted = re.search(r"# f\(x\) == (.*), x = $", question)
            assert wanted is not None
            assert repr(function(question)(eval(value))) == wanted[1]


def test_every_operation_needs_the_one_before_it() -> None:
    """So many statements, each of them with the last result on its right side; and all kinds of them come."""
    kinds: Counter[str] = Counter()
    for m in (1, 3, 6):
        for seed in range(200):
            program = draw_program(random.Random(seed), m)
            assert len(repr(program.result)) <= max(len(str(LARGEST)) + 1, MOST_LETTERS + 2)
            statements = re.split(r"\n (?!else| )", "".join(program.symbols))[1:]
            assert len(statements) == m + 1
            last = "x"
            for statement in statements[:-1]:
                assert re.search(rf"(= |- |\+ |\* |in |if ){last}\b", statement), (statement, last)
                target = re.search(r"(\w) = ", statement)
                assert target is not None
                last = target[1]
                kinds.update(found[0] for found in re.finditer(r"if|for|\.\w+| [-+*%] |\[", statement))
            assert statements[-1] == f"return {last}"
            assert function("".join(program.symbols))(program.given) == program.result
    assert set(kinds) == {"if", "for", ".upper", ".replace", " + ", " - ", " * ", " % ", "["}
    assert min(kinds.values()) > 60


def test_numbers_of_operations_and_what_is_asked_are_as_said() -> None:
    examples = BOTH.draw(np.random.default_rng(0), 3000)
    found = Counter(len(re.findall(r"\n (?!else|return| )", question)) for question, _ in texts(BOTH, examples))
    assert set(found) == {1, 2, 3}
    assert all(count == pytest.approx(1000, abs=120) for count in found.values())
    inputs = sum(question.endswith(", x = ") for question, _ in texts(BOTH, examples))
    assert inputs == pytest.approx(1500, abs=150)
    strings = sum("'" in question + answer for question, answer in texts(BOTH, examples))
    assert strings == pytest.approx(1500, abs=150)
    assert examples.lengths.max() <= BOTH.longest
    used = {SYMBOLS[i] for i in np.unique(examples.tokens[examples.is_real])}
    assert used == set(SYMBOLS), "a token that never comes"
    assert len(set(SYMBOLS)) == len(SYMBOLS)


def key(question: str, answer: str) -> tuple[str, str]:
    """(program, value) with variables called by their turn."""
    program, value = re.split(r"\nassert f\(.*$|\n# f\(x\) == (.*), x = $", question)[:2]
    names = dict.fromkeys(re.findall(r"\b[vwyz]\b", program))
    order = {name: f"V{i}" for i, name in enumerate(names)}
    return re.sub(r"\b[vwyz]\b", lambda m: order[m[0]], program), value or answer.strip()


def test_a_program_with_its_value_is_on_one_side_whatever_is_asked() -> None:
    trained = {key(*pair) for index in range(2) for pair in texts(BOTH, BOTH.train(0, index, 1000))}
    for name, test in BOTH.test_sets(40).items():
        asked = {key(*pair) for pair in texts(BOTH, test)}
        assert len(asked) == 40
        assert not asked & trained, name
    ones = {key(*pair) for pair in texts(BOTH, BOTH.test("m_1", 300))}
    others = {key(*pair) for pair in texts(BOTH, BOTH.test("input_m_1", 300))}
    assert ones & others, "the two ask about the same programs"
    assert np.array_equal(BOTH.test("m_2", 30).tokens, BOTH.test("m_2", 30).tokens)


def test_every_input_that_gives_the_value_is_right() -> None:
    task = Execution(predict="input")
    program = ["def f(x):", "\n ", "v", " = ", "x", " % ", "5", "\n ", "return ", "v"]
    asked = [*program, "\n# f(x) == ", "3", ", x = "]
    ids = [SYMBOLS.index(symbol) for symbol in [*asked, "8", "\n"]]
    example = Examples(np.array([ids]), np.array([len(ids)]), np.array([len(asked)]))

    def right(*answer: str) -> bool:
        return bool(task.judge(example, [[SYMBOLS.index(symbol) for symbol in answer]])[0])

    assert all(right(*answer, "\n") for answer in (["3"], ["8"], ["1", "3"], ["-", "7"]))
    for answer in (["4"], ["'", "a", "'"], ["x"], ["3", ")"], [], ["0", "3"], ["def f(x):"], ["-", " - ", "3"]):
        assert not right(*answer, "\n"), answer
    assert not right("3"), "an answer has an end"
    whole = task.test("input_m_2", 50)
    given = [whole.tokens[row, start:length].tolist() for row, (start, length) in
             enumerate(zip(whole.answer_starts, whole.lengths))]  # fmt: skip
    assert task.judge(whole, given).all()


def gives(question: str, answer: str) -> bool:
    """Whether an input gives the value that is asked for, in Python; one of another type gives none."""
    try:
        return bool(function(question)(eval(answer)) == eval(question.rpartition(" == ")[2].removesuffix(", x = ")))
    except (TypeError, AttributeError):
        return False


def test_baselines_against_a_count_by_hand() -> None:
    for name in ("m_2", "input_m_2"):
        examples = BOTH.test(name, 200)
        pairs = texts(BOTH, examples)
        found = BOTH.baselines(name, examples)
        frequent = [answer for answer, _ in Counter(answer for _, answer in pairs).most_common(20)]
        right = Counter[str]()
        for answer, (question, own) in product(frequent, pairs):
            right[answer] += answer == own if name == "m_2" else gives(question, answer)
        assert found["constant"] == max(right.values()) / 200
        copied = 0
        for question, answer in pairs:
            if name == "m_2":
                copied += question.endswith(f"f({answer.strip()}) == ")
            else:
                copied += gives(question, question.rpartition(" == ")[2].removesuffix(", x = "))
        assert found["copy"] == copied / 200 > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_operations": 0}, r"data\.task\.train_operations is 0"),
        ({"test_operations": 101}, r"data\.task\.test_operations is 101"),
        ({"train_operations": 5, "test_operations": 4}, r"data\.task\.test_operations is 4, and .* at least that"),
    ],
)
def test_tasks_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Execution(**settings)


def test_names_and_averages() -> None:
    assert Execution().test_names == ("m_1", "m_2", "m_3", "m_4", "m_5", "m_6")
    assert Execution().averages == {"in_domain": ("m_1", "m_2", "m_3", "m_4"), "out_of_domain": ("m_5", "m_6")}
    assert BOTH.test_names[5:] == BOTH.judged == tuple(f"input_m_{m}" for m in range(1, 6))
    assert set(BOTH.averages) == {"in_domain", "out_of_domain", "input_in_domain", "input_out_of_domain"}
    assert not Execution().judged


@pytest.mark.usefixtures("shapes_unchecked")
def test_inputs_are_written_and_judged(make_model: Callable[..., MTPModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(vocab_size=len(SYMBOLS))
    with torch.no_grad():
        model.unembedding.weight[:] = torch.randn(model.unembedding.weight.shape) * 0.1
    sets = {name: BOTH.test(name, 12) for name in BOTH.test_names}
    said = written(model, sets["input_m_1"])
    longest = int((sets["input_m_1"].lengths - sets["input_m_1"].answer_starts).max())
    assert len(said) == 12
    assert all(0 < len(tokens) <= longest for tokens in said)

    def right_ones(_: MTPModel, examples: Examples) -> list[list[int]]:
        rows = zip(examples.tokens, examples.answer_starts, examples.lengths)
        return [row[start:length].tolist() for row, start, length in rows]

    monkeypatch.setattr(probe, "written", right_ones)
    found = exact_match(model, BOTH, sets)
    assert set(found) == {*BOTH.test_names, *BOTH.averages}
    assert [found[name] for name in BOTH.judged] == [1.0] * 5
    assert found["input_in_domain"] == 1.0
    assert found["m_1"] < 1
