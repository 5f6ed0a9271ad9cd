"""What is fuzzed: each kind of input is made once, whole and good, and then used with one mutation at a time."""

import gzip
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutations
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from small_runs import SMALL, fit, make_folder

from mtp_lightning.checkpoints.files import load_model
from mtp_lightning.cli import main
from mtp_lightning.config.config_files import find_config
from mtp_lightning.config.one_config import Parsed, check_config, parse_config
from mtp_lightning.data.tokenizers.training import train_bpe
from mtp_lightning.data.tokens.token_bytes import token_bytes
from mtp_lightning.data.tokens.tokenizer import load_tokenizer
from mtp_lightning.errors import InputError
from mtp_lightning.grid import commands


class SilentChangeError(Exception):
    """Damaged input was taken, and gave something else."""


class Target:
    """One kind of input.

    Args:
        folder: its own, where everything it uses is made.
    """

    name: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        os.chdir(folder)  # as a user would; commands find the small run and its corpus here

    def use(self, chance: random.Random) -> str:
        """Mutate and use it: `accepted`, `refused` or `failed`.

        Raises:
            SilentChangeError: see there.
        """
        raise NotImplementedError


def command(*args: str) -> str:
    """What came of `mtp` with these arguments."""
    return {0: "accepted", 2: "refused"}.get(main(list(args)), "failed")


def attempt(act: Callable[[], object]) -> str:
    try:
        act()
    except InputError:
        return "refused"
    return "accepted"


MIXED = (
    SMALL.replace("heads: {n_future: 2}", "heads: {n_future: 2}\n  recompute: {every: 2}").replace(
        "source: {kind: text, path: corpus}",
        """mixture:
    - {source: {kind: text, path: corpus}, weight: {0: 1, 3: 2}}
    - {name: s, source: {kind: stories}, weight: 1}""",
    )
    + "    mixture_weights: {s: 2}\n"
)


class Configurations(Target):
    """A configuration of `mtp fit`, of one corpus or of a mixture, as text and as values, and a flag: parsed, and its
    objects made."""

    name = "configurations"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        make_folder(folder)
        self.base = find_config("conf/base.yaml")
        self.parsed: Parsed = parse_config([self.base, folder / "small.yaml"], {})
        self.keys = [key for key, value in self.parsed.cli.config.items() if not isinstance(value, dict)]

    def use(self, chance: random.Random) -> str:
        file, flags, text = self.folder / "mutated.yaml", {}, chance.choice([SMALL, MIXED])
        if chance.random() < 0.3:
            file.write_text(mutations.text_of(text, chance))
        elif chance.random() < 0.5:
            file.write_text(mutations.as_yaml(mutations.value_of(yaml.safe_load(text), chance)))
        else:
            file.write_text(text)
            flags = {chance.choice(self.keys): chance.choice(mutations.ODD_VALUES)}
        return attempt(lambda: check_config(parse_config([self.base, file], flags, self.parsed)))


GRID = """\
name: fuzzed
configs: [conf/base.yaml, small.yaml]
overrides: {trainer.max_steps: 3, trainer.val_check_interval: 1}
axes:
  model.heads.n_future: [1, 2]
  model.optimizer.lr: [1.0e-3, 1.0e-2]
  model.backbone.dim: [16, 32]
  model.backbone.ffn_dim: [32, 64]
zip:
  - [model.backbone.dim, model.backbone.ffn_dim]
exclude:
  - heads.n_future == 2 and backbone.dim == 32
seeds: [0, 1]
baseline: {model.heads.n_future: 1, model.optimizer.lr: 1.0e-3, model.backbone.dim: 16, model.backbone.ffn_dim: 32}
compare: [{metric: val/loss/head_1, at: {step: 2}}]
resources: {cpus: 1, minutes: 5}
retry: 1
"""


class Grids(Target):
    """A grid file, planned."""

    name = "grids"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        make_folder(folder)
        Path("grid.yaml").write_text(GRID)
        assert command("grid", "plan", "grid.yaml", "--runs", "runs") == "accepted", "nothing would be tried"

    def use(self, chance: random.Random) -> str:
        file = self.folder / "grid.yaml"
        if chance.random() < 0.5:
            file.write_text(mutations.text_of(GRID, chance))
        else:
            file.write_text(mutations.as_yaml(mutations.value_of(yaml.safe_load(GRID), chance)))
        return command("grid", "plan", str(file), "--runs", str(self.folder / "runs"))


class Checkpoints(Target):
    """A checkpoint and its export: bytes, and the tree of values in it."""

    name = "checkpoints"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        make_folder(folder)
        assert fit("runs/one", "--trainer.max_steps=3", "--trainer.logger=false") == 0
        assert main(["export", "runs/one", "one.safetensors"]) == 0
        (path,) = (folder / "runs/one/checkpoints").glob("*.ckpt")
        self.files = {path.suffix: path.read_bytes() for path in (path, folder / "one.safetensors")}
        self.content = torch.load(path, weights_only=True)
        self.weights = load_model(path).model.state_dict()

    def use(self, chance: random.Random) -> str:
        suffix = chance.choice(list(self.files))
        path = self.folder / f"mutated{suffix}"
        of_bytes = suffix == ".safetensors" or chance.random() < 0.6
        if of_bytes:
            path.write_bytes(mutations.bytes_of(self.files[suffix], chance))
        else:
            torch.save(mutations.value_of(self.content, chance), path)
        loaded: list[Any] = []
        found = attempt(lambda: loaded.append(load_model(path)))
        if loaded and of_bytes:
            state = loaded[0].model.state_dict()
            if state.keys() != self.weights.keys() or any(
                not torch.equal(state[k], w) for k, w in self.weights.items()
            ):
                raise SilentChangeError("other weights than those that were saved")
        return found


class States(Target):
    """What a grid's cells wrote about themselves, read by all commands that read it."""

    name = "states"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        make_folder(folder)
        (folder / "grid.yaml").write_text(
            "name: fuzzed\nconfigs: [conf/base.yaml, small.yaml]\noverrides: {trainer.max_steps: 3}\n"
            "axes: {model.heads.n_future: [1, 2]}\nseeds: [0]\nbaseline: {model.heads.n_future: 1}\n"
            "compare: [val/loss/head_1]\n"
        )
        assert main(["grid", "run", "grid.yaml"]) == 0
        self.cell = sorted(path.parent for path in (folder / "runs").glob("*/result.json"))[0]
        (self.cell / "progress.json").write_text((self.cell / "result.json").read_text())
        (self.cell / "failure.json").write_text('{"error": "ValueError", "message": "it was", "where": "here.py:1"}')
        self.files = [path for path in self.cell.iterdir() if path.is_file() and path.suffix in (".json", "", ".jsonl")]
        self.whole = {path: path.read_bytes() for path in self.files}
        loaded = commands.Grid("grid.yaml")._loaded
        commands.Grid._loaded = property(lambda _: loaded)  # type: ignore[assignment]  # the grid's file is whole

    def use(self, chance: random.Random) -> str:
        path = chance.choice(self.files)
        whole = self.whole[path]
        path.unlink()
        how = chance.randrange(6)
        try:
            if how == 0:
                path.mkdir()
            elif how == 1:
                path.symlink_to(path.name)
            elif how < 4 and path.suffix == ".json":
                path.write_text(mutations.as_json(mutations.value_of(json.loads(whole), chance)))
            else:
                path.write_bytes(mutations.bytes_of(whole, chance))
            words = chance.choice([["status"], ["status"], ["plan"], ["report"], ["logs", "0"]])
            return command("grid", words[0], "grid.yaml", *words[1:])
        finally:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            path.write_bytes(whole)


ROWS = [{"text": f"a story of {name}, who had {n} eggs", "n": n} for n, name in enumerate(["Ann", "Bo", "Çağ", ""] * 8)]


class Data(Target):
    """Files of text in each format, prepared."""

    name = "data"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()
        table = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(ROWS), table)
        text = "\n\n".join(str(row["text"]) for row in ROWS).encode()
        self.files = [
            ("json", "a.jsonl", lines), ("json", "a.jsonl.gz", gzip.compress(lines)),
            ("parquet", "a.parquet", table.getvalue()), ("text", "a.txt", text),
        ]  # fmt: skip

    def use(self, chance: random.Random) -> str:
        kind, name, content = chance.choice(self.files)
        for old in ("in", "out"):
            shutil.rmtree(self.folder / old, ignore_errors=True)
        (self.folder / "in").mkdir()
        (self.folder / "in" / name).write_bytes(mutations.bytes_of(content, chance))
        flags = ["--kind", kind, "--path", "in", "--validation_fraction", "0.3"]
        return command("data", "prepare", "out", *flags)


class Tokenizers(Target):
    """A tokenizer.json, loaded, and used on a text."""

    name = "tokenizers"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.serialized = train_bpe(iter([str(row["text"]) for row in ROWS]), 300)

    def use(self, chance: random.Random) -> str:
        path = self.folder / "tokenizer.json"
        if chance.random() < 0.3:
            path.write_bytes(mutations.bytes_of(self.serialized.encode(), chance))
        else:
            path.write_text(mutations.as_json(mutations.value_of(json.loads(self.serialized), chance)))

        def use() -> None:
            tokenizer = load_tokenizer(str(path))
            ids = tokenizer.encode("a story of Çağ </s> <|endoftext|>")
            if tokenizer.eos_id in ids:
                raise SilentChangeError("text can write the end of a document")
            tokenizer.decode([*ids, chance.randrange(400), tokenizer.eos_id])
            token_bytes(tokenizer)

        return attempt(use)


class Prompts(Target):
    """A prompt, and flags of `mtp generate`."""

    name = "prompts"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        make_folder(folder)
        assert fit("runs/one", "--trainer.max_steps=3", "--trainer.logger=false", "--data.context=64") == 0

    def use(self, chance: random.Random) -> str:
        prompt = chance.choice(mutations.ODD_TEXT) + mutations.text_of("def f(x):\n    return x", chance)
        flags = ["--max_new_tokens", str(chance.choice([0, 1, 4, -1, "x", 10**12]))] if chance.random() < 0.5 else []
        if chance.random() < 0.4:
            flags += ["--temperature", str(chance.choice([0, 1, -1, "nan", "inf", 1e-40, "x", ""]))]
        if chance.random() < 0.2:
            flags += [
                "--top_k",
                str(chance.choice([0, 1, -1, 10**12, "x"])),
                "--top_p",
                str(chance.choice([0, 1, 2, "nan"])),
            ]
        flags = ["--max_new_tokens", "4", *flags]
        return command("generate", "runs/one", "--prompt", prompt.replace("\x00", ""), *flags)


TARGETS: tuple[type[Target], ...] = (Configurations, Grids, Checkpoints, States, Data, Tokenizers, Prompts)
