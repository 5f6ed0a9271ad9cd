"""The schema for editors says what the reader says; the experiments' grids hold by it, and all their settings have keys
that there are."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from test_grid_fakes import grid_file, load_grid

from mtp_lightning.config.config_files import CONF_DIR
from mtp_lightning.config.many_configs import Resolver
from mtp_lightning.errors import InputError
from mtp_lightning.grid.spec.cell_maker import CellMaker
from mtp_lightning.grid.spec.grid_spec import GridSpec, read_grid
from mtp_lightning.grid.spec.reader import DIRECTIONS, KEYS, REQUIRED, UNITS
from mtp_lightning.grid.spec.resources import BUDGET, Resources
from mtp_lightning.grid.spec.settings import find_settings
from mtp_lightning.grid.spec.stages import COMMON, OWN
from mtp_lightning.yaml_lines import read_yaml

SCHEMA: dict[str, Any] = json.loads((CONF_DIR / "grid.schema.json").read_text())
REPOSITORY = Path(__file__).parents[2]
GRIDS = [
    path
    for path in sorted((REPOSITORY / "experiments").glob("**/*.yaml"))
    if {"axes", "stages"} & read_yaml(path)[0].keys()
]
"""Whatever they are called: other YAML files there are parts of configurations."""
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

FULL = """\
name: all
configs: [base.yaml]
overrides: {a: 1}
axes:
  b.c: [1, big.yaml, {d: null}]
  e: [1, 2, 3]
  f: [x, y]
  w: [1, 2, 3, 4]
  lr: [0.1, 0.2]
zip:
  - [b.c, e]
include:
  - {e: 8, lr: 0.1, g: 100}
exclude:
  - e > 2 and seed == 0
ablate: false
seeds: [0, 1]
baseline: {b.c: 1}
compare:
  - m
  - {metric: n/1, better: higher, at: {tokens: 1.0e+6}}
ladder: {size: w}
tune: {axis: lr, seeds: [100, 101]}
resources:
  gpus: 0
  nodes: 1
  tasks: null
  cpus: 2
  memory_gb: 3.5
  gpu_memory_gb: null
  minutes: 60
  partition: p
  account: a
  qos: null
  constraint: c
  rules:
    - {when: e >= 2, gpus: 2, minutes: 120}
budget: {gpu_hours: 10, hours: 0.5, tokens: 1000, flops: 1.0e+12}
retry: 2
"""


def read(folder: Path, text: str) -> GridSpec:
    path = grid_file(folder, text, big="")
    return load_grid(path)


def faults(folder: Path, text: str) -> list[str]:
    return [error.json_path for error in VALIDATOR.iter_errors(read_yaml(grid_file(folder, text, big=""))[0])]


def test_it_is_a_schema_that_explains_every_key() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["title"]
    resources, comparison = SCHEMA["$defs"]["resources"], SCHEMA["$defs"]["comparison"]["properties"]
    for properties in (SCHEMA["properties"], SCHEMA["properties"]["budget"]["properties"], resources["properties"]):
        assert all(described.get("description") for described in properties.values())
    assert set(SCHEMA["properties"]) == set(KEYS)
    assert tuple(SCHEMA["else"]["required"]) == REQUIRED
    stage = SCHEMA["properties"]["stages"]["items"]["properties"]
    assert set(stage) == {"name", "from", *OWN}
    besides = set(KEYS) - {*COMMON, "stages"}
    assert {key for part in SCHEMA["then"]["not"]["anyOf"] for key in part["required"]} == besides
    assert set(SCHEMA["properties"]["budget"]["properties"]) == set(BUDGET)
    assert tuple(comparison["better"]["enum"]) == DIRECTIONS
    assert set(comparison["at"]["properties"]) == set(UNITS)
    assert {field.name for field in fields(Resources)} == set(resources["properties"])


def test_its_defaults_are_the_readers() -> None:
    spec: dict[str, Any] = {field.name: field.default for field in fields(GridSpec)}
    plain = {key: described["default"] for key, described in SCHEMA["properties"].items() if "default" in described}
    assert plain == {key: list(spec[key]) if isinstance(spec[key], tuple) else spec[key] for key in plain}
    for field in fields(Resources):
        assert SCHEMA["$defs"]["resources"]["properties"][field.name].get("default") == field.default


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", GRIDS, ids=name)
def test_the_experiments_grids_pass_and_name_it(path: Path) -> None:
    assert not list(VALIDATOR.iter_errors(read_yaml(path)[0]))
    comment, _, schema = path.read_text().splitlines()[0].partition("$schema=")
    assert comment == "# yaml-language-server: "
    assert (path.parent / schema).resolve() == CONF_DIR / "grid.schema.json"


@pytest.mark.parametrize("path", GRIDS, ids=name)
def test_every_setting_of_the_experiments_has_keys_that_there_are(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as is known without Lightning: a key that was renamed, a number out of its range, an `exclude` that is
    true for nothing."""
    monkeypatch.chdir(REPOSITORY)
    assert wrong(path) == []


def wrong(path: Path) -> list[str]:
    spec, problems = read_grid(path)
    assert spec is not None, problems
    for part in spec.parts:
        settings, more = find_settings(part)
        problems += [*more, *CellMaker(part, Resolver(None), Path("runs")).unknown_keys(settings)]
    return problems


def test_a_key_of_an_experiment_that_is_no_more_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(REPOSITORY)
    star = next(path for path in GRIDS if name(path) == "016_objectives/star_graph")
    copy = tmp_path / "grid.yaml"
    copy.write_text(star.read_text().replace("model.optimizer.lr", "model.optimizer.rate"))
    (problem,) = wrong(copy)
    assert "there is no key 'model.optimizer.rate'; did you mean 'model.optimizer.lr'?" in problem


def test_a_grid_with_everything_passes_both(tmp_path: Path) -> None:
    assert not faults(tmp_path, FULL)
    spec = read(tmp_path, FULL)
    assert set(spec.resources[0].values) == {field.name for field in fields(Resources)}


BAD = [
    ("name: all\n", "", "$"),
    ("name: all", "name: ../a", "$.name"),
    ("retry: 2", "retries: 2", "$"),
    ("retry: 2", "retry: -1", "$.retry"),
    ("retry: 2", "retry: yes", "$.retry"),
    ("[base.yaml]", "base.yaml", "$.configs"),
    ("[base.yaml]", "[]", "$.configs"),
    ("e: [1, 2, 3]", "e: 3", "$.axes.e"),
    ("e: [1, 2, 3]", "e: []", "$.axes.e"),
    ("e: [1, 2, 3]", "e f: [1]", "$.axes"),
    ("[b.c, e]", "[b.c]", "$.zip[0]"),
    ("[b.c, e]", "b.c", "$.zip[0]"),
    ("{e: 8, lr: 0.1, g: 100}", "{}", "$.include[0]"),
    ("e > 2 and seed == 0", "5", "$.exclude[0]"),
    ("ablate: false", "ablate: 1", "$.ablate"),
    ("seeds: [0, 1]", "seeds: [0, 0]", "$.seeds"),
    ("seeds: [0, 1]", "seeds: [-1]", "$.seeds[0]"),
    ("baseline: {b.c: 1}", "baseline: [1]", "$.baseline"),
    ("  - m\n", "  - pass@1\n", "$.compare[0]"),
    ("better: higher", "better: more", "$.compare[1]"),
    ("{tokens: 1.0e+6}", "{tokens: 0}", "$.compare[1]"),
    ("{tokens: 1.0e+6}", "{tokens: 1, step: 1}", "$.compare[1]"),
    ("{tokens: 1.0e+6}", "{epochs: 1}", "$.compare[1]"),
    ("{size: w}", "{sizes: w}", "$.ladder"),
    ("tune: {axis: lr, seeds: [100, 101]}", "gate: {at: 5, keep: within 1 of the best}", "$.gate.at"),
    ("tune: {axis: lr, seeds: [100, 101]}", "gate: {at: step=5, keep: within 1}", "$.gate.keep"),
    ("{size: w}", "{size: 4}", "$.ladder.size"),
    ("{axis: lr, seeds: [100, 101]}", "{axis: lr}", "$.tune"),
    ("[100, 101]", "[100, 100]", "$.tune.seeds"),
    ("[100, 101]", "[-1]", "$.tune.seeds[0]"),
    ("gpus: 0", "gpu: 0", "$.resources"),
    ("gpus: 0", "gpus: 1.5", "$.resources.gpus"),
    ("nodes: 1", "nodes: 0", "$.resources.nodes"),
    ("nodes: 1", "nodes: null", "$.resources.nodes"),
    ("partition: p", "partition: 5", "$.resources.partition"),
    ("memory_gb: 3.5", "memory_gb: 0", "$.resources.memory_gb"),
    ("minutes: 120", "hours: 2", "$.resources.rules[0]"),
    ("{when: e >= 2, gpus: 2, minutes: 120}", "{when: e >= 2}", "$.resources.rules[0]"),
    ("{when: e >= 2, gpus: 2, minutes: 120}", "{gpus: 2}", "$.resources.rules[0]"),
    ("hours: 0.5", "days: 0.5", "$.budget"),
    ("hours: 0.5", "hours: 0", "$.budget.hours"),
]


@pytest.mark.parametrize(("old", "new", "place"), BAD, ids=[new.strip() or old.strip() for old, new, _ in BAD])
def test_what_is_bad_is_refused_by_both(tmp_path: Path, old: str, new: str, place: str) -> None:
    assert FULL.count(old) == 1
    text = FULL.replace(old, new)
    assert place in faults(tmp_path, text)
    with pytest.raises(InputError):
        read(tmp_path, text)
