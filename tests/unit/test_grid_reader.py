"""The grid file: what is read, and the one message for everything that is wrong with it."""

from pathlib import Path

import pytest
from test_grid_fakes import GRID, grid_file, load_grid

from mtp_lightning.errors import InputError
from mtp_lightning.grid.spec.grid_spec import At
from mtp_lightning.grid.spec.resources import ResourceRule


def test_a_grid_is_read(tmp_path: Path) -> None:
    spec = load_grid(grid_file(tmp_path))
    assert spec.name == "head-count"
    assert spec.configs == (tmp_path / "base.yaml",)
    assert spec.axes == {"model.heads.n_future": (1, 2, 4)}
    assert spec.overrides == {"trainer.max_steps": 5}
    assert spec.seeds == (0, 1)
    assert spec.baseline == {"model.heads.n_future": 1}
    assert spec.compare == ("val/loss/head_1", "decode/speedup")


def test_only_name_configs_and_axes_are_needed(tmp_path: Path) -> None:
    spec = load_grid(grid_file(tmp_path, "name: a\nconfigs: [base.yaml]\naxes: {model.width: [1e2]}\n"))
    assert spec.axes == {"model.width": (100.0,)}  # a float, which YAML 1.1 would read as text
    assert spec.seeds == (0,)
    assert spec.compare == ("val/loss/head_1",)


BAD = {
    "typo": ("seeds:", "sedes:", r"grid.yaml:6: sedes: unknown key; did you mean 'seeds'\?"),
    "no name": ("name: head-count\n", "", "name: missing"),
    "name": ("head-count", "a/b", "grid.yaml:1: name: 'a/b' cannot name a folder"),
    "dots": ("head-count", "..", "cannot name a folder"),
    "configs": ("[base.yaml]", "base.yaml", "grid.yaml:2: configs: must be a list"),
    "no config": ("base.yaml", "bsae.yaml", "grid.yaml:2: configs: configuration file 'bsae.yaml' is not there"),
    "no values": ("[1, 2, 4]", "[]", "grid.yaml:5: axes.model.heads.n_future: has no values"),
    "one value": ("[1, 2, 4]", "4", "grid.yaml:5: axes.model.heads.n_future: must be a list of values, not a number"),
    "twice": ("[1, 2, 4]", "[1, 2, 2.0]", "axes.model.heads.n_future: 2.0 is given twice"),
    "date": ("[1, 2, 4]", "[2026-01-01]", "axes.model.heads.n_future: datetime.date.* quote it"),
    "file": ("[1, 2, 4]", "[1, big.yaml]", "grid.yaml:5: axes.model.heads.n_future: configuration file 'big.yaml'"),
    "key": ("  model.heads.n_future", "  model heads", "grid.yaml:5: axes.model heads: is not a dotted"),
    "hardware": ("  model.heads.n_future", "  trainer.devices", "cannot be an axis: .*hardware"),
    "seed axis": ("  model.heads.n_future", "  seed_everything", "seeds are set by the key `seeds`"),
    "both": ("trainer.max_steps: 5", "model.heads.n_future: 5", "overrides.model.heads.n_future: is an axis too"),
    "seeds": ("[0, 1]", "[0, 0]", "grid.yaml:6: seeds: 0 is given twice"),
    "seed": ("[0, 1]", "[0, x]", "grid.yaml:6: seeds: must be a list of whole numbers; 'x' is text"),
    "bool": ("[0, 1]", "[true]", "'?True'? is true/false"),
    "negative": ("[0, 1]", "[-1]", "seeds: -1 is outside"),
    "base key": ("{model.heads.n_future: 1}", "{model.n_future: 1}", "baseline.model.n_future: is not an axis; did"),
    "base value": ("n_future: 1}", "n_future: 3}", "grid.yaml:7: baseline.*: 3 is not on the axis, which has 1, 2, 4"),
    "base kind": ("{model.heads.n_future: 1}", "[1]", "baseline: must be a mapping, not a list"),
    "metric": ("decode/speedup", "pass@1", "grid.yaml:8: compare: 'pass@1' is no metric name"),
    "metric kind": ("decode/speedup", "5", "grid.yaml:8: compare: must be a list of metric names, .*; 5 is a number"),
    "better": ("decode/speedup", "{metric: x, better: less}", "8: compare.better: must be lower or higher"),
    "at unit": ("decode/speedup", "{metric: x, at: {steps: 5}}", "at: must be one of step, tokens, bytes, flops"),
    "at amount": ("decode/speedup", "{metric: x, at: {step: 0}}", "compare.at: must be one of"),
    "at twice": ("decode/speedup", "{metric: x, at: {step: 5, tokens: 5}}", "compare.at: must be one of"),
    "at none": ("decode/speedup", "{metric: x, at: {}}", "compare.at: must be one of"),
    "compare key": (
        "decode/speedup",
        "{metric: x, when: 5}",
        "compare.when: unknown key; there are metric, better, at",
    ),
    "no metric": ("decode/speedup", "{better: lower}", "compare: None is no metric name"),
    "metrics": ("decode/speedup", "val/loss/head_1", "compare: 'val/loss/head_1' is given twice"),
    "key twice": ("seeds: [0, 1]", "seeds: [0]\nseeds: [1]", "grid.yaml:7: seeds: written twice, first on line 6"),
    "yaml": ("[0, 1]", "[0, 1", "grid.yaml:7: not valid YAML"),
}


MORE = {
    "zip kind": ("zip: [model.width]", "grid.yaml:9: zip: must be a list of groups"),
    "zip one": ("zip: [[model.width]]", "zip: a group is a list of two axes or more"),
    "zip text": ("zip: [[model.width, 5]]", "zip: a group is a list of two axes or more"),
    "zip name": ("zip: [[width, model.n_layers]]", "zip: 'width' is not an axis; did you mean 'model.width'"),
    "zip lengths": (
        "zip:\n  - [model.width, model.n_layers, optimizer.lr]",
        "grid.yaml:10: zip: .*equally many.*lr has 3",
    ),
    "zip twice": ("zip: [[model.width, model.n_layers, model.width]]", "zip: 'model.width' is given twice"),
    "two groups": (
        "zip:\n  - [model.width, model.n_layers]\n  - [optimizer.lr, model.width]",
        "grid.yaml:11: zip: 'model.width' is given twice",
    ),
    "exclude kind": ("exclude: width > 1", "exclude: must be a list of expressions"),
    "exclude none": ("exclude: []", "exclude: must be a list of expressions .*, and not empty"),
    "exclude item": ("exclude:\n  - width > 8\n  - 5", "grid.yaml:11: exclude: must be a list .*; 5 is a number"),
    "exclude name": ("exclude: [widht > 1]", "exclude: 'widht > 1': unknown name 'widht'; did you mean 'width'"),
    "include kind": ("include: {model.width: 1}", "include: must be a list of settings"),
    "include none": ("include: [{}]", "include: is empty"),
    "include key": ("include:\n  - model width: 1", "grid.yaml:10: include.model width: is not a dotted"),
    "include devices": ("include: [{trainer.devices: 1}]", "include.trainer.devices: cannot be included: .*hardware"),
    "include seed": ("include: [{seed_everything: 1}]", "include.seed_everything: seeds are set by"),
    "include file": ("include: [{model: none.yaml}]", "include.model: configuration file 'none.yaml' is not there"),
    "include date": ("include: [{model.width: 2026-01-01}]", "include.model.width: datetime.date.* quote it"),
    "ablate kind": ("ablate: 1", "ablate: must be true or false, not 1"),
    "ablate open": ("ablate: true", "grid.yaml:9: ablate: .* does not fix model.width, model.n_layers, optimizer.lr"),
    "resource": ("resources:\n  gpu: 1", "grid.yaml:10: resources.gpu: unknown key; did you mean 'gpus'"),
    "gpus": ("resources: {gpus: 1.5}", "resources.gpus: must be a whole number, 0 or more, not 1.5"),
    "no node": ("resources: {nodes: 0}", "resources.nodes: must be a whole number, 1 or more, not 0"),
    "no tasks": ("resources: {tasks: 0}", "resources.tasks: must be a whole number, 1 or more"),
    "null": ("resources: {gpus: null}", "resources.gpus: must be a whole number, 0 or more, not None"),
    "yes": ("resources: {cpus: yes}", "resources.cpus: must be a whole number, 1 or more, not True"),
    "minutes": ("resources: {minutes: -5}", "resources.minutes: must be a whole number, 1 or more, not -5"),
    "memory": ("resources: {memory_gb: 0}", "resources.memory_gb: must be a positive number, not 0"),
    "GPU memory": ("resources: {gpus: 1, gpu_memory_gb: no}", "resources.gpu_memory_gb: must be a positive number"),
    "memory inf": ("resources: {memory_gb: .inf}", "resources.memory_gb: must be a positive number, not inf"),
    "partition": ("resources: {partition: 5}", "resources.partition: must be text, not 5"),
    "rules": ("resources: {rules: {gpus: 1}}", "resources.rules: must be a list of rules, not a mapping"),
    "no when": ("resources:\n  rules:\n    - gpus: 1\n", "grid.yaml:11: resources.rules: must be a mapping such as"),
    "no what": ("resources: {rules: [{when: width > 8}]}", "resources.rules: must be a mapping such as"),
    "rule": ("resources: {rules: [{when: width > 8, gpus: x}]}", "resources.rules.gpus: must be a whole number"),
    "rule name": ("resources: {rules: [{when: depth > 8, gpus: 1}]}", "resources.rules: 'depth > 8': unknown name"),
    "budget key": ("budget: {gpu_hour: 1}", "budget.gpu_hour: unknown key; did you mean 'gpu_hours'"),
    "budget": ("budget: {hours: 0}", "budget.hours: must be a positive number, not 0"),
    "budget text": ("budget: {flops: many}", "budget.flops: must be a positive number, not 'many'"),
    "budget huge": (f"budget: {{flops: {10**400}}}", "budget.flops: must be a positive number"),
    "retry": ("retry: -1", "retry: must be a whole number of attempts, 0 or more, not -1"),
    "retries": ("retry: true", "retry: must be a whole number of attempts"),
}
WIDE = GRID.replace(
    "axes:\n", "axes:\n  model.width: [8, 16]\n  model.n_layers: [4, 6]\n  optimizer.lr: [0.1, 0.2, 0.3]\n"
)


@pytest.mark.parametrize(("old", "new", "message"), BAD.values(), ids=BAD)
def test_bad_files_name_file_line_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GRID
    with pytest.raises(InputError, match=message) as caught:
        load_grid(grid_file(tmp_path, GRID.replace(old, new)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n", "text\n", "axes: {}\nname: a\nconfigs: [base.yaml]\n"])
def test_files_that_are_no_grid(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"grid\.yaml"):
        load_grid(grid_file(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read: No such file"):
        load_grid(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_grid(tmp_path)
    (tmp_path / "grid.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not UTF-8"):
        load_grid(tmp_path / "grid.yaml")


@pytest.mark.parametrize(("section", "message"), MORE.values(), ids=MORE)
def test_bad_sections_name_file_line_and_key(tmp_path: Path, section: str, message: str) -> None:
    head, _, rest = WIDE.partition("seeds:")
    text = f"{head}{section}\nseeds:{rest}"
    with pytest.raises(InputError, match=message) as caught:
        load_grid(grid_file(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_everything_else_is_read(tmp_path: Path) -> None:
    text = WIDE.replace("compare: [val/loss/head_1, decode/speedup]\n", "") + (
        "zip: [[model.width, model.n_layers]]\n"
        "include: [{model.width: 64, model: big.yaml}]\n"
        "exclude: [width > 8 and lr < 0.2]\n"
        "resources: {gpus: 1, memory_gb: 2.5, partition: null, rules: [{when: width > 8, gpus: 2, minutes: 90}]}\n"
        "budget: {gpu_hours: 0.5, tokens: 1_000, flops: 1e12}\n"
        "retry: 2\n"
        "compare: [a, {metric: b, better: higher, at: {step: 1e3}}, {metric: c, at: {tokens: 1_000}}]\n"
    )
    spec = load_grid(grid_file(tmp_path, text, big=""))
    assert spec.zip == (("model.width", "model.n_layers"),)
    assert spec.include == ({"model.width": 64, "model": "big.yaml"},)
    assert spec.files == {"big.yaml": tmp_path / "big.yaml"}
    assert spec.keys == (*spec.axes, "model")
    assert spec.exclude == ("width > 8 and lr < 0.2",)
    common, rule = spec.resources
    assert common == ResourceRule(None, {"gpus": 1, "memory_gb": 2.5, "partition": None})
    assert rule == ResourceRule("width > 8", {"gpus": 2, "minutes": 90})
    assert spec.budget == {"gpu_hours": 0.5, "tokens": 1000.0, "flops": 1e12}
    assert spec.retry == 2
    assert spec.compare == ("a", "b", "c")
    assert spec.better == {"b": "higher"}
    assert spec.at == {"b": At("step", 1000.0), "c": At("tokens", 1000.0)}


ZIPPED = WIDE.replace("n_layers: [4, 6]", "n_layers: [4, 4]") + "zip: [[model.width, model.n_layers]]\n"


def test_the_baseline_of_an_axis_is_that_of_its_group(tmp_path: Path) -> None:
    """And an axis of a group may have a value twice."""
    spec = load_grid(grid_file(tmp_path, ZIPPED.replace("baseline: {", "baseline: {model.width: 16, ")))
    assert spec.baseline == {"model.width": 16, "model.heads.n_future": 1, "model.n_layers": 4}
    with pytest.raises(InputError, match=r"baseline: model.n_layers fits several values; give model.width too"):
        load_grid(grid_file(tmp_path, ZIPPED.replace("baseline: {", "baseline: {model.n_layers: 4, ")))
    apart = ZIPPED.replace("n_layers: [4, 4]", "n_layers: [4, 6]")
    fixed = apart.replace("baseline: {", "baseline: {model.width: 8, model.n_layers: 6, ")
    with pytest.raises(InputError, match=r"11: baseline: .* model.width 8, model.n_layers 6 never come together"):
        load_grid(grid_file(tmp_path, fixed.replace("baseline", "# \nbaseline")))
    with pytest.raises(InputError, match=r"zip: \(8, 4\) is given twice"):
        load_grid(grid_file(tmp_path, ZIPPED.replace("width: [8, 16]", "width: [8, 8]")))


def test_all_problems_are_told_at_once_and_no_consequences_of_them(tmp_path: Path) -> None:
    text = """\
name: a/b
configs: [base.yaml, none.yaml]
sedes: [0]
axes:
  model.width: 8
  model.n_layers: [4, 6]
  optimizer.lr: [0.1]
zip:
  - [model.width, model.n_layers]
  - [model.n_layers, optimizer.lr]
exclude:
  - width > 4
  - depth > 4
baseline: {model.width: 9, model.n_layers: 5}
ablate: true
resources: {gpus: -1}
retry: x
"""
    with pytest.raises(InputError) as caught:
        load_grid(grid_file(tmp_path, text))
    lines = str(caught.value).splitlines()
    told = sorted(int(line.removeprefix(f"{tmp_path}/grid.yaml:").partition(":")[0]) for line in lines)
    assert told == [1, 2, 3, 5, 10, 13, 14, 15, 16, 17], lines
