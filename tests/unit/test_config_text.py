"""Text is text, and numbers have one meaning, in files, in flags and in grids."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mtp_lightning.config.config_files import find_config, literal
from mtp_lightning.config.keys.key_origins import arguments
from mtp_lightning.config.lightning_cli import MTPCLI
from mtp_lightning.config.one_config import parse_config
from mtp_lightning.errors import InputError
from mtp_lightning.yaml_lines import dump_yaml, read_value, read_yaml

BASE = ["-c", "conf/base.yaml", "-c", "conf/model/tiny.yaml", "-c", "conf/data/python_stdlib.yaml"]
PATH, RATE, HEADS = "data.init_args.source.path", "model.optimizer.lr", "model.heads.n_future"


@pytest.fixture(scope="module")
def cli() -> MTPCLI:
    return MTPCLI(BASE, parse_only=True)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def by_flag(cli: MTPCLI, key: str, text: str) -> Any:
    return cli.parsed_from([*BASE, f"--{key}={text}"]).config[key]


def by_file(cli: MTPCLI, key: str, text: str) -> Any:
    *groups, last = key.split(".")
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(groups)]
    Path("mine.yaml").write_text("\n".join([*lines, f"{'  ' * len(groups)}{last}: {text}\n"]), encoding="utf-8")
    return cli.parsed_from([*BASE, "-c", "mine.yaml"]).config[key]


def by_grid(cli: MTPCLI, key: str, text: str) -> Any:
    Path("grid.yaml").write_text(f"axes: {{{key}: [{text}]}}\n", encoding="utf-8")
    raw, _ = read_yaml(Path("grid.yaml"))
    (value,) = raw["axes"][key]
    return cli.parsed_from([*BASE, *arguments([], {key: value})]).config[key]


WAYS = [by_flag, by_file, by_grid]
NUMBERS = {"010": 10, "1_000": 1000, "08": 8}
RATES = {"010": 10, "1e3": 1000, "1E-3": 1e-3, ".5": 0.5}


@pytest.mark.parametrize("way", WAYS)
def test_numbers_have_one_meaning(cli: MTPCLI, way: Any) -> None:
    assert {text: way(cli, HEADS, text) for text in NUMBERS} == NUMBERS
    rates = {text: way(cli, RATE, text) for text in RATES}
    assert rates == RATES
    assert all(isinstance(rate, float) for rate in rates.values())
    for text, key in (("1:30", HEADS), ("0o10", RATE), ("1:30.5", RATE)):
        with pytest.raises(InputError, match=f"{key} is .?{text}"):
            way(cli, key, text)


@pytest.mark.parametrize(
    "text", ["# x", "#!/bin/sh", "---", "~", "&a", "*a", "!b", "|", "123", "1e3", "010", "true", "[a]", "{a: 1}", "'q'"]
)
def test_text_is_text(cli: MTPCLI, text: str) -> None:
    quoted = "'" + text.replace("'", "''") + "'"
    Path("mine.yaml").write_text(f"data: {{init_args: {{source: {{name: {quoted}}}}}}}", encoding="utf-8")
    Path("grid.yaml").write_text(f"[{quoted}]", encoding="utf-8")
    (value,), _ = read_yaml(Path("grid.yaml"))
    flags = [f"--ckpt_path={text}", f"--{PATH}={text}"]
    grid = arguments([], {"data.init_args.source.revision": value})
    config = cli.parsed_from([*BASE, "-c", "mine.yaml", *flags, *grid]).config
    source = config.data.init_args.source
    assert [config.ckpt_path, source.path, source.name, source.revision] == [text] * 4


def test_null_unsets(cli: MTPCLI) -> None:
    assert by_flag(cli, PATH, "null") is None
    assert by_file(cli, PATH, "null") is None
    assert by_file(cli, PATH, "'null'") == "null"
    assert by_flag(cli, "data.init_args.tokenizer", "null") == "null", "which can hold nothing but text"
    assert by_grid(cli, PATH, "null") is None


@pytest.mark.parametrize("key", [PATH, "data.init_args.tokenizer", "trainer.default_root_dir"])
def test_a_grid_says_what_a_file_says(cli: MTPCLI, key: str) -> None:
    """What is quoted is text, and what YAML reads as something else is no text."""
    for text in ("'null'", "'yes'", "'off'", "'010'", "'é\U0001f600'", '"a\\tb\\x85"'):
        quoted = by_file(cli, key, text)
        assert by_grid(cli, key, text) == quoted == yaml.safe_load(text)
    for text in ("yes", "off", "010", "1e3", "[a]"):
        for way in (by_file, by_grid):
            with pytest.raises(InputError, match="it has to be text"):
                way(cli, key, text)


@given(st.text("\\\\${}a.:/", max_size=12))
def test_what_looks_like_an_interpolation_is_text_in_a_written_configuration(text: str) -> None:
    """Resolved as jsonargparse does it: all of it, once, where a `${` is in it."""
    config = {"a": [f"${{{text}"]}
    assert OmegaConf.to_container(OmegaConf.create(literal(config)), resolve=True) == config


def test_a_folder_called_like_an_interpolation(cli: MTPCLI) -> None:
    name = "runs/${trainer.max_steps}/\\${x"
    Path("mine.yaml").write_text(dump_yaml(literal({"trainer": {"default_root_dir": name}})), encoding="utf-8")
    config = cli.parsed_from([*BASE, "-c", "mine.yaml"]).config
    assert [config.trainer.default_root_dir, config.trainer.logger.init_args.directory] == [name, name]


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])) | st.sampled_from(["1e3", "08", "0o7", "1:30", "off"]))
def test_what_is_written_is_read_as_the_same(text: str) -> None:
    for reader in (read_value, yaml.safe_load):
        assert reader(dump_yaml({"key": text})) == {"key": text}


@given(st.integers() | st.floats(allow_nan=False))
def test_numbers_are_written_as_they_are_read(number: float) -> None:
    for reader in (read_value, yaml.safe_load):
        read = reader(dump_yaml([number]))[0]
        assert (read, type(read)) == (number, type(number))
    assert math.isnan(read_value(".nan"))


def test_a_resolved_configuration_reads_as_itself(cli: MTPCLI) -> None:
    """What a run or a cell leaves in its folder: texts that look like numbers stay texts."""
    files = [find_config(name) for name in BASE[1::2]]
    parsed = parse_config(files, {PATH: "1e3", "data.init_args.tokenizer": "08"})
    Path("config.yaml").write_text(dump_yaml(parsed.plain), encoding="utf-8")
    again = cli.parsed_from(["-c", "config.yaml"]).config.data.init_args
    assert (again.source.path, again.tokenizer) == ("1e3", "08")
