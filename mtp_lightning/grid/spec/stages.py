"""Chains: the stages of a grid file, each a grid of its own whose cells begin with the weights of an earlier stage's.

    stages:
      - {name: pretrain, axes: {model.heads.n_future: [1, 4]}}
      - {name: finetune, from: pretrain, axes: {model.optimizer.lr: [1.0e-4, 3.0e-4]}}

A stage has the axes of the one it comes from too, `pretrain.model.heads.n_future` (in expressions `pretrain.n_future`):
a cell begins with the cell that has these values and the same seed, and takes them over into its configuration, where
it does not set the key itself. Everything here works on the file's content; the reader checks it, stage by stage.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtp_lightning.config.keys.known_keys import TOP_LEVEL
from mtp_lightning.errors import did_you_mean
from mtp_lightning.yaml_lines import Lines, place

COMMON = ("name", "configs", "overrides", "seeds", "compare", "resources", "retry", "budget")
"""What stands beside `stages`, and holds for all of them."""
OWN = (
    "configs",
    "overrides",
    "axes",
    "zip",
    "include",
    "exclude",
    "ablate",
    "seeds",
    "baseline",
    "compare",
    "ladder",
    "resources",
)
"""What a stage may say; configs and overrides come on top of the common ones, the others replace them."""
_NAME = re.compile(r"[A-Za-z_]\w{0,49}")


class Stage(NamedTuple):
    """A stage as a grid file of its own."""

    name: str
    ancestors: tuple[str, ...]
    """The stages that it comes from, the nearest first."""
    raw: Mapping[str, Any]
    lines: Lines


def split_stages(path: Path, raw: Mapping[Any, Any], lines: Lines) -> tuple[list[Stage], list[str]]:
    """The good stages, and what is wrong with the others."""
    problems: list[str] = []

    def problem(*key: str | int, message: str) -> None:
        problems.append(f"{place(path, lines, *key)}: {message}")

    for key in raw:
        if key == "tune":
            problem(key, message="chains cannot be tuned: tune an axis in a grid of its own, and give the value")
        elif key == "gate":
            problem(key, message="chains have no gate: what begins with a cell's weights needs it finished")
        elif key not in (*COMMON, "stages"):
            belongs = key in OWN
            known = f"; known beside stages: {', '.join(COMMON)}"
            problem(
                str(key),
                message="belongs to a stage" if belongs else f"unknown key{did_you_mean(str(key), COMMON) or known}",
            )
    items = raw["stages"]
    if not isinstance(items, list) or not items:
        problem("stages", message="must be a list of stages, each a mapping with a name, and not empty")
        return [], problems
    stages: dict[str, Stage] = {}
    for index, item in enumerate(items):
        at = ("stages", index)
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(item, dict) or not isinstance(name, str) or not _NAME.fullmatch(name):
            problem(*at, message="must be a mapping with a name of letters, digits and _, such as {name: pretrain}")
        elif name in stages or name in (*TOP_LEVEL, "seed"):
            problem(*at, "name", message=f"'{name}' is {'given twice' if name in stages else 'no free name'}")
        elif unknown := [key for key in item if key not in ("name", "from", *OWN)]:
            hint = did_you_mean(str(unknown[0]), OWN) or f"; a stage has name, from, {', '.join(OWN)}"
            problem(*at, str(unknown[0]), message=f"unknown key{hint}")
        elif "from" in item and item["from"] not in stages:
            earlier = ", ".join(stages) or "none"
            problem(*at, "from", message=f"{item['from']!r} is no earlier stage; earlier ones: {earlier}")
        else:
            stages[name] = _stage(raw, item, lines, index, stages.get(item.get("from", "")))
    return list(stages.values()), problems


def _stage(raw: Mapping[Any, Any], item: Mapping[str, Any], lines: Lines, index: int, parent: Stage | None) -> Stage:
    own = {key: value for key, value in item.items() if key in OWN}
    common = {key: raw[key] for key in COMMON if key in raw and key != "budget"}
    merged = {**common, "axes": {}, **own, "name": f"{raw.get('name')}.{item['name']}"}
    front = ("stages", str(index))
    here = {key[2:]: line for key, line in lines.items() if key[:2] == front}
    shared = {
        key: line for key, line in lines.items() if key[:1] not in {(name,) for name in own if name != "overrides"}
    }
    configs = raw.get("configs")
    if "configs" in own and isinstance(configs, list) and isinstance(own["configs"], list):
        merged["configs"] = [*configs, *own["configs"]]
        here = {_moved(key, len(configs)): line for key, line in here.items()}
        shared |= {key: line for key, line in lines.items() if key[0] == "configs"}
    if isinstance(raw.get("overrides"), dict) and isinstance(own.get("overrides", {}), dict):
        merged["overrides"] = {**raw["overrides"], **own.get("overrides", {})}
    ancestors: tuple[str, ...] = ()
    if parent is not None:
        ancestors = (parent.name.rpartition(".")[2], *parent.ancestors)
        axes = own.get("axes", {})
        if isinstance(axes, dict) and isinstance(parent.raw["axes"], dict):
            inherited = {prefixed(key, ancestors): values for key, values in parent.raw["axes"].items()}
            merged["axes"] = {**inherited, **axes}
    return Stage(merged["name"], ancestors, merged, {**shared, **here})


def _moved(key: tuple[str, ...], by: int) -> tuple[str, ...]:
    """The path of an item of `configs` after those that all stages share."""
    return (key[0], str(int(key[1]) + by), *key[2:]) if key[:1] == ("configs",) and len(key) > 1 else key


def prefixed(key: str, ancestors: Sequence[str]) -> str:
    """The key of an axis of `ancestors[0]` in a stage that comes from it."""
    return key if stage_of(key, ancestors[1:]) else f"{ancestors[0]}.{key}"


def stage_of(key: str, ancestors: Sequence[str]) -> str | None:
    """The earlier stage whose axis it is; None: the key of a configuration."""
    first = key.partition(".")[0]
    return first if first in ancestors else None


def without_stage(key: str, ancestors: Sequence[str]) -> str:
    stage = stage_of(key, ancestors)
    return key.removeprefix(f"{stage}.") if stage else key


def parents_values(values: Mapping[str, Any], ancestors: Sequence[str]) -> dict[str, Any]:
    """The values of the cell that one with `values` begins from."""
    front = f"{ancestors[0]}."
    return {key.removeprefix(front): value for key, value in values.items() if stage_of(key, ancestors)}


def taken_over(values: Mapping[str, Any], ancestors: Sequence[str], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Key of the configuration -> value: what the nearest stage says holds, and what a stage overrides is not taken."""
    order = [*reversed(ancestors), None]
    found: dict[str, Any] = {}
    for stage in order:
        for key, value in values.items():
            if stage_of(key, ancestors) != stage:
                continue
            plain = without_stage(key, ancestors)
            if stage is not None and any(plain == other or plain.startswith(f"{other}.") for other in overrides):
                continue
            found = {old: kept for old, kept in found.items() if not (f"{old}.").startswith(f"{plain}.")}
            found[plain] = value
    return found
