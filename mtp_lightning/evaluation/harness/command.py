"""`mtp evaluate lm-eval`: tasks of lm-eval, and of one's own in its format."""

import json as json_module
from pathlib import Path
from typing import Any, Literal

from mtp_lightning.errors import InputError, UnavailableError, did_you_mean
from mtp_lightning.files import check_json, write_text
from mtp_lightning.machine import check_device
from mtp_lightning.ranges import Kept, check_value

OURS = {
    "humaneval_infilling": "infilling",
    "humaneval": "humaneval",
    "mbpp": "mbpp",
    "cruxeval": "cruxeval-output` or `mtp evaluate cruxeval-input",
    "apps": "stdin",
    "code_contests": "stdin",
}
"""How the names of lm-eval's tasks begin that run what a model wrote in lm-eval's own process -> our own."""


def lm_eval_command(
    ckpt: str,
    tasks: list[str] | None = None,
    include_path: str | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    heads_used: int | Literal["auto"] = "auto",
    batch_size: int = 16,
    device: Literal["cpu", "cuda"] = "cpu",
    seed: int = 0,
    json: str | None = None,
) -> None:
    """Tasks of lm-eval (ARC, COPA, HellaSwag, NQ, PIQA, SIQA, TriviaQA, ...), which fetches their data by itself, or
    from files that your own YAML names.

    Args:
        ckpt: Checkpoint, or a file of `mtp export`, or the folder of a run, whose newest checkpoint is taken.
        tasks: Names of tasks (needed), as in '[arc_easy, piqa]'.
        include_path: Folder with tasks of your own; its files may name Python code, which is run.
        num_fewshot: Worked examples before every question; the task's own number without it.
        limit: Ask the first questions only; not recorded in MLflow.
        heads_used: Heads that draft where a task asks for texts; auto takes as many as pay.
        batch_size: Texts that are scored or written together.
        device: Where the model runs.
        seed: Of samples, where a task asks for such.
        json: File to write the numbers to as well.
    """
    from mtp_lightning.evaluation.command import load
    from mtp_lightning.evaluation.evaluate import Subject
    from mtp_lightning.evaluation.results.record import record
    from mtp_lightning.evaluation.results.results import rates

    check_json(json, ckpt=ckpt)
    check_device(device)
    check_value("batch_size", batch_size, Kept)
    check_value("limit", limit, Kept | None)
    names = check_tasks(tasks)
    lm_eval = _installed()
    manager = task_manager(names, include_path)
    loaded = load(Path(ckpt))
    from mtp_lightning.evaluation.harness.model import MTPLanguageModel

    model = MTPLanguageModel(Subject.loaded(loaded, device), batch_size, heads_used, seed)
    metrics: dict[str, float] = {}
    results: dict[str, Any] = {}
    left_out: list[str] = []
    try:
        for number, name in enumerate(names):
            left_out = names[number:]
            model.counts.clear()
            found = ask(lm_eval, model, name, manager, num_fewshot=num_fewshot, limit=limit)
            results |= found
            metrics |= {f"eval/{metric}": value for metric, value in flat(found).items()}
            metrics |= {f"eval/{name}/{rate}": value for rate, value in rates(model.counts).items()}
        left_out = []
    except InputError as error:
        if not results:
            raise
        raise UnavailableError(str(error)) from error  # what was found is written
    finally:  # a task that cannot be asked takes nothing away from those before it
        if results:
            _show(lm_eval.__version__, loaded.step, metrics)
            if json is not None:
                content = {"ckpt": str(loaded.path), "step": loaded.step, "metrics": metrics, "results": results}
                content |= {"left_out": left_out} if left_out else {}
                write_text(Path(json), json_module.dumps(content, indent=1, default=str) + "\n")
            record(Path(ckpt), loaded.step, metrics, limited=limit is not None)


def _show(version: str, step: int, metrics: dict[str, float]) -> None:
    print(f"lm-eval {version} at step {step:,}")
    width = max(map(len, metrics), default=0) + 2
    for metric, value in metrics.items():
        print(f"  {metric:<{width}}{value:9.4f}")


def check_tasks(tasks: list[str] | None) -> list[str]:
    """
    Raises:
        InputError: none, or one that would run what the model writes in this process.
    """
    if not tasks:
        raise InputError("--tasks is missing: names of lm-eval's tasks, as in --tasks '[arc_easy, piqa]'")
    for name in tasks:
        ours = next((command for begin, command in OURS.items() if name.startswith(begin)), None)
        if ours is not None:
            raise InputError(
                f"tasks: '{name}' of lm-eval runs what a model wrote outside of any sandbox: use `mtp evaluate {ours}`"
            )
    return list(dict.fromkeys(tasks))


def task_manager(names: list[str], include_path: str | None) -> Any:
    """Of the tasks of `include_path` alone, where they are enough: to look at all of lm-eval's own takes seconds.

    Raises:
        InputError: no such folder, or no such task.
    """
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        if not Path(include_path).is_dir():
            raise InputError(f"include_path: there is no folder '{include_path}'")
        own = TaskManager(include_path=include_path, include_defaults=False)
        if set(names) <= set(own.all_tasks):
            return own
    manager = TaskManager(include_path=include_path)
    known = set(manager.all_tasks)
    for name in names:
        if name not in known:
            raise InputError(f"tasks: lm-eval has no task '{name}'{did_you_mean(name, known)}")
    return manager


def ask(lm_eval: Any, model: Any, name: str, manager: Any, **settings: Any) -> dict[str, dict[str, Any]]:
    """Task -> what lm-eval says of it; of a group, of all its tasks.

    Raises:
        InputError: its data cannot be had, or the model cannot be asked it.
    """
    try:
        loaded = manager.load([name])
    except OSError as error:  # what `datasets` raises, without a connection too
        if isinstance(error.errno, int):
            raise
        said = " ".join(str(error).split())[:300]
        raise InputError(f"tasks: the data of '{name}' cannot be had ({said}): name local files in its YAML") from error
    unsafe = [task for task, made in loaded["tasks"].items() if getattr(made, "UNSAFE_CODE", False)]
    if unsafe:
        raise InputError(f"tasks: '{unsafe[0]}' runs what a model wrote outside of any sandbox, and is not asked")
    try:
        found = lm_eval.simple_evaluate(
            model=model, tasks=[name], task_manager=manager, log_samples=False, bootstrap_iters=0, **settings
        )
    except InputError as error:
        raise InputError(f"tasks: '{name}' cannot be asked: {error}") from error
    assert found is not None
    return {task: dict(results) for task, results in found["results"].items()}


def flat(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """`arc_easy/acc_norm` of lm-eval's "acc_norm,none"; of other filters `gsm8k/exact_match/strict-match`. Standard
    errors are left to the JSON."""
    found = {}
    for task, numbers in results.items():
        for key, value in numbers.items():
            metric, _, chosen = key.partition(",")
            if isinstance(value, int | float) and chosen and not metric.endswith("_stderr"):
                found[f"{task}/{metric}" + ("" if chosen == "none" else f"/{chosen}")] = float(value)
    return found


def _installed() -> Any:
    try:
        import lm_eval
    except ImportError as error:
        raise InputError("lm-eval is not installed: pip install 'mtp-lightning[evaluation]'") from error
    return lm_eval
