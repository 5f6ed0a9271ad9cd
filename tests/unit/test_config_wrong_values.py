"""Every key of a configuration is given numbers that cannot be, and values of other types: it is refused by its name,
or the objects are made."""

from pathlib import Path
from typing import Any

import pytest
from sampled import one_in
from small_runs import make_folder

from mtp_lightning.config.config_files import find_config
from mtp_lightning.config.one_config import Parsed, check_config, parse_config
from mtp_lightning.errors import InputError

VALUES = [
    float("nan"),
    float("inf"),
    -float("inf"),
    -1,
    0,
    10**12,
    10**400,
    "text",
    "",
    [],
    [-1],
    {},
    {"a": 1},
    True,
    None,
]
PARTS = 30
OF_THE_CLASS = [("model.loss.weights.lam", {"a": 1})]
"""Refused by the class itself, before which the tests' own check of types comes."""


def leaves(node: Any, key: str = "") -> list[str]:
    """Dotted keys of what is no mapping, in classes' arguments too."""
    if not isinstance(node, dict):
        return [key]
    return [leaf for name, value in node.items() for leaf in leaves(value, f"{key}.{name}".lstrip("."))]


def wrong(parsed: Parsed, files: list[Path], key: str, value: Any) -> str | None:
    """What is wrong with how it ends, if something is."""
    try:
        check_config(parse_config(files, {"model.backbone.n_layers": 6, key: value}, parsed))
    except InputError as error:
        names = {key.rpartition(".")[2], f"'{key.removesuffix('init_args')}"}  # of a class's keys, as jsonargparse says
        return (
            None
            if any(name in str(error) for name in names)
            else f"{key} = {value!r:.30}: the message does not name it: {str(error)[:200]}"
        )
    except Exception as error:  # what is looked for
        return f"{key} = {value!r:.30}: {type(error).__name__}: {str(error)[:200]}"
    return None


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method")  # what torch.compile loads
@pytest.mark.parametrize("part", one_in(PARTS, range(PARTS)))
def test_every_key_with_every_wrong_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    """A part at a time: each key gets other values than the one before it."""
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path)
    files = [find_config("conf/base.yaml"), tmp_path / "small.yaml"]
    parsed = parse_config(files, {})
    keys = [key for key in leaves(parsed.plain) if not key.endswith("class_path")]
    keys += [
        "model",
        "model.backbone",
        "model.schedule",
        "model.loss.weights",
        "data.init_args",
        "data.init_args.source",
    ]
    assert len(keys) > 80
    found = [
        wrong(parsed, files, key, value)
        for i, key in enumerate(keys)
        for j, value in enumerate(VALUES)
        if (i + j) % PARTS == part and (key, value) not in OF_THE_CLASS
    ]
    assert "\n".join(filter(None, found)) == ""


@pytest.mark.parametrize("key", ["model.heads.replicate_unembedding", "model.backbone.dim", "trainer.max_steps"])
def test_null_is_no_value_of_a_key_that_wants_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Out of a grid too, whose values reach the parser as those of a file."""
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path)
    with pytest.raises(InputError, match=f"{key} is null: it has to be "):
        parse_config([find_config("conf/base.yaml"), tmp_path / "small.yaml"], {key: None})
