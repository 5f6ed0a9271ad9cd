"""EvalPlus's format: base and plus, expected values and their cache, what counts as equal."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from test_evaluation_code_tasks import ADD_PLUS, sandbox, scores, write

from mtp_lightning.cli import main
from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.programs import score
from mtp_lightning.evaluation.sandbox import Limits, Sandbox, values
from mtp_lightning.evaluation.tasks import evalplus
from mtp_lightning.evaluation.tasks.evalplus import is_right
from mtp_lightning.evaluation.tasks.humaneval import humaneval
from mtp_lightning.evaluation.tasks.mbpp import mbpp

__all__ = ["sandbox"]


def test_humaneval_plus(tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    task = humaneval(write(tmp_path / "plus.jsonl", ADD_PLUS))
    endless = "a + b if a < 5 else [x for x in iter(int, 1)]"
    bodies = ("a + b", "int(a + b)", "a + b + 1e-9", "None", "a + b if b else x", endless)
    with Sandbox(Limits(cpu_seconds=1.0, wall_factor=50.0)) as short:
        found = scores(task, short, *(f"    return {body}\n" for body in bodies))
    passed = [(one.passed[""], one.passed["plus"]) for one in found]
    assert passed == [(True, True), (True, False), (False, False), (False, False), (True, True), (True, False)]
    assert found[-1].verdict == "timed_out"
    [cache] = (tmp_path / "cache/mtp_lightning").iterdir()
    cache.write_bytes(cache.read_bytes()[:-9])  # damaged: made again
    again = humaneval(tmp_path / "plus.jsonl")
    assert scores(again, sandbox, "    return a + b\n")[0].passed == {"": True, "plus": True}
    assert json.loads(gzip.decompress(cache.read_bytes()))["HumanEval/0"].keys() == {"base", "plus", "seconds"}
    with pytest.raises(InputError, match="canonical solution of HumanEval/0 fails on its plus inputs"):
        scores(humaneval(write(tmp_path / "x.jsonl", ADD_PLUS | {"plus_input": [["a", 1]]})), sandbox, "")


def test_the_benchmark_of_the_sandbox_takes_plus_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write(tmp_path / "plus.jsonl", ADD_PLUS)
    assert main(["bench", "sandbox", "--rounds", "1", "--data", str(tmp_path / "plus.jsonl")]) == 0


@pytest.mark.parametrize(
    "content",
    [
        {}, [], {"HumanEval/0": {}}, {"HumanEval/0": None}, {"HumanEval/1": {"base": "[]", "plus": "[]", "seconds": 1}},
        {"HumanEval/0": {"base": "[]", "plus": "[]", "seconds": 0.1}},
        {"HumanEval/0": {"base": '[["int", "0x3"], ["int", "0x0"]]', "plus": "[7, 7]", "seconds": 0.1}},
        {"HumanEval/0": {"base": "[null, null]", "plus": "[null, null]", "seconds": float("nan")}},
    ],
)  # fmt: skip
def test_a_cache_of_another_shape_is_made_again(
    tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, content: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write(tmp_path / "plus.jsonl", ADD_PLUS)
    cache = evalplus.cache_file(path)
    cache.parent.mkdir(parents=True)
    cache.write_bytes(gzip.compress(json.dumps(content).encode()))
    assert scores(humaneval(path), sandbox, "    return a + b\n")[0].passed == {"": True, "plus": True}
    assert json.loads(gzip.decompress(cache.read_bytes()))["HumanEval/0"]["base"] == '[["int", "0x3"], ["int", "0x0"]]'


def test_without_a_place_for_a_cache_it_goes_on(
    tmp_path: Path,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    task = humaneval(write(tmp_path / "plus.jsonl", ADD_PLUS))
    assert scores(task, sandbox, "    return a + b\n")[0].passed == {"": True, "plus": True}
    assert "not kept for the next time: [Errno 20] Not a directory" in capsys.readouterr().err
    scores(task, sandbox, "    return a + b\n")
    assert capsys.readouterr().err == "", "run once"
    request.getfixturevalue("homeless")
    assert scores(humaneval(tmp_path / "plus.jsonl"), sandbox, "    return a + b\n")[0].passed["plus"]
    assert "home directory" in capsys.readouterr().err


def test_what_evalplus_takes_as_equal() -> None:
    assert is_right("f", [], 0.1 + 0.2, 0.3, 0)
    assert not is_right("f", [], 0.30001, 0.3, 0)
    assert is_right("f", [], 0.30001, 0.3, 1e-4)
    assert is_right("f", [], [1.0, 2.0 + 1e-8], [1.0, 2.0], 0)
    assert not is_right("f", [], (1.0, 2.0 + 1e-8), [1.0, 2.0], 0)
    assert not is_right("f", [], [1.0], [1.0, 2.0], 0)
    assert not is_right("f", [], [1, 2 + 1e-8], [1, 2], 0)
    assert is_right("f", [], float("nan"), float("nan"), 0)
    assert not is_right("f", [], None, 0.5, 0)
    assert is_right("f", [], True, 1, 0)
    assert is_right("find_zero", [[-6, 11, -6, 1]], 1.00000001, 2.0, 1e-4)
    assert not is_right("find_zero", [[-6, 11, -6, 1]], 1.5, 1.5, 1e-4)
    assert is_right("similar_elements", [], (4, 5), (5, 4), 0)
    assert is_right("check_str", [], 0, True, 0)
    assert not is_right("check_str", [], None, True, 0)
    for result, right in ((True, True), ("b", True), (0, True), (False, False), (None, False)):
        assert is_right("text_starta_endb", [], result, "Found a match!", 0) == right, result
        assert is_right("text_match_three", [], result, None, 0) != right, result
    assert is_right("surface_Area", [3, 4], 34.63201, 33, 1e-3)
    assert not is_right("surface_Area", [3, 4], 34.0, 33, 1e-3)
    assert is_right("digit_distance_nums", [123, 256], 7, 0, 0)


@pytest.mark.parametrize(
    "entry",
    ["f", "find_zero", *sorted(evalplus.AS_SETS | evalplus.NOT_NONE), "surface_Area", "digit_distance_nums"],
)
def test_an_exception_is_never_right(entry: str) -> None:
    for expected in (True, "Found a match!", None, [1], 0.5):
        assert not is_right(entry, [[1, 2], 3], values.Raised("ZeroDivisionError"), expected, 1e-4)


def test_mbpp_plus_calls_with_tuples(tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shared = {"entry_point": "f", "prompt": '"""\nWhat is it?\n"""\n', "atol": 0}
    solution = "def f(*args): return repr(args)\n"
    cases = {
        "Mbpp/2": ([[1, 2], [3]], "((1, 2), (3,))"), "Mbpp/63": ([[[1], [2]]], "([(1,), (2,)],)"),
        "Mbpp/75": ([[[1], [2]], 5], "([(1,), (2,)], 5)"), "Mbpp/106": ([[1], [2]], "([1], (2,))"),
        "Mbpp/115": ([[[1], []]], "([{1}, {}],)"), "Mbpp/124": (["0", "1j"], "(0.0, 1j)"),
        "Mbpp/252": (["2"], "((2+0j),)"), "Mbpp/307": ([[1, [2]], 3, 4], "((1, [2]), 3, 4)"),
        "Mbpp/278": ([[1, [2]]], "((1, (2,)),)"), "Mbpp/722": ([{"a": [1]}, 2], "({'a': (1,)}, 2)"),
        "Mbpp/580": ([[1, [2, [3]]]], "((1, (2, (3,))),)"), "Mbpp/9": ([[1]], "([1],)"),
    }  # fmt: skip
    rows = [
        shared | {"task_id": i, "canonical_solution": solution, "base_input": [given], "plus_input": []}
        for i, (given, _) in cases.items()
    ]
    task = mbpp(write(tmp_path / "MbppPlus.jsonl", *rows))
    sources = [(i, f"def f(*args): return {wanted!r}") for i, (_, wanted) in cases.items()]
    assert [i for (i, _), one in zip(sources, score(task, sources, sandbox)) if not one.passed["plus"]] == []


def test_a_program_that_raises_matches_nothing(
    tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    solution = "def check_str(text):\n    return 'found' if text else None\n"
    row = {
        "task_id": "Mbpp/434", "entry_point": "check_str", "prompt": '"""\nIs there any?\n"""\n', "atol": 0,
        "canonical_solution": solution, "base_input": [["a"]], "plus_input": [["b"]],
    }  # fmt: skip
    found = scores(mbpp(write(tmp_path / "plus.jsonl", row)), sandbox, solution, "def check_str(text): 1 / 0")
    assert [one.passed for one in found] == [{"": True, "plus": True}, {"": False, "plus": False}]
