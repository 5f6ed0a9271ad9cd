"""What is fuzzed, further: what the platform keeps in several files, which go together."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import torch
from small_runs import fit, make_folder
from targets import SilentChangeError, Target, attempt, command

from mtp_lightning.checkpoints.files import load_model, verify_checkpoint
from mtp_lightning.checkpoints.select import latest_checkpoint
from mtp_lightning.cli import main
from mtp_lightning.data.preparing import pieces
from mtp_lightning.data.tokens.samples import SampleLog, batches
from mtp_lightning.data.tokens.store import SPLITS, TokenStore, read_meta
from mtp_lightning.data.tokens.verify import open_store
from mtp_lightning.evaluation.samples import Sample, SampleFile


def damage(path: Path, chance: random.Random, pipes: bool = True) -> None:
    """Of a file: its bytes, its values if it is JSON, or its being one.

    Args:
        pipes: it may become a pipe, which is not for what a user may give as one.
    """
    whole, how = path.read_bytes(), chance.randrange(8)
    if how == 0:
        path.unlink()
        return
    if how == 1:
        path.unlink()
        chance.choice([path.mkdir, lambda: path.symlink_to(path.name), *([lambda: os.mkfifo(path)] if pipes else [])])()
    elif how < 5 and path.suffix == ".json":
        path.write_text(mutations.as_json(mutations.value_of(json.loads(whole), chance)))
    elif how < 5 and path.suffix == ".jsonl":
        lines = whole.splitlines()
        at = chance.randrange(len(lines))
        lines[at] = mutations.as_json(mutations.value_of(json.loads(lines[at]), chance)).encode()
        path.write_bytes(b"\n".join(lines) + b"\n")
    else:
        path.write_bytes(mutations.bytes_of(whole, chance))


class Kept(Target):
    """Files in the folder `whole`, of which a copy, `copy`, is damaged and used."""

    def one_of(self, chance: random.Random, *patterns: str) -> Path:
        return chance.choice(sorted(path for pattern in patterns for path in Path("copy").rglob(pattern)))

    def use(self, chance: random.Random) -> str:
        remove(Path("copy"))
        shutil.copytree("whole", "copy")
        return self.use_copy(chance)

    def use_copy(self, chance: random.Random) -> str:
        raise NotImplementedError


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


class Parts(Kept):
    """A checkpoint in parts: the older one is taken where the newest is damaged."""

    name = "parts"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        make_folder(folder)
        flags = ("--trainer.callbacks.kind=sharded", "--trainer.callbacks.every_n_steps=2", "--trainer.logger=false")
        assert fit("runs/one", "--trainer.max_steps=4", *flags) == 0
        Path("runs/one/checkpoints").rename("whole")
        self.weights = load_model(Path("whole/step-00000004.ckpt")).model.state_dict()

    def use_copy(self, chance: random.Random) -> str:
        newest = Path("copy/step-00000004.ckpt")
        damage(chance.choice(sorted(newest.iterdir())), chance)
        loaded: list[Any] = []
        found = attempt(lambda: (verify_checkpoint(newest), loaded.append(load_model(newest))))
        if loaded and any(not torch.equal(loaded[0].model.state_dict()[k], w) for k, w in self.weights.items()):
            raise SilentChangeError("other weights than those that were saved")
        taken = latest_checkpoint(Path("copy"))
        if taken != (newest if found == "accepted" else Path("copy/step-00000002.ckpt")):
            raise SilentChangeError(f"{found}, and {taken} is taken")
        return found


class Shards(Kept):
    """Prepared tokens of pairs: what is accepted is what was written."""

    name = "shards"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        rows = [{"prompt": f"what is {i}?", "completion": f"it is {i}"} for i in range(12)]
        Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        flags = ["--kind", "pairs", "--path", "pairs.jsonl", "--validation_fraction", "0.3"]
        assert main(["data", "prepare", "whole", *flags]) == 0
        self.tokens = {split: self.content(TokenStore(Path("whole"), split)) for split in SPLITS}
        assert read_meta(Path("whole")).answers

    @staticmethod
    def content(store: TokenStore) -> list[np.ndarray]:
        answers = np.empty(0) if store.answer_starts is None else store.answer_starts
        return [store.read(0, len(store)), np.array(store.document_starts), np.array(answers)]

    def use_copy(self, chance: random.Random) -> str:
        damage(self.one_of(chance, "*.bin", "meta.json", "meta.json", "verified.json"), chance)
        found: dict[Any, list[np.ndarray]] = {}

        def use() -> None:
            for split in SPLITS:
                found[split] = self.content(open_store(Path("copy"), split))

        outcome = attempt(use)
        same = all(np.array_equal(a, b) for split in found for a, b in zip(found[split], self.tokens[split]))
        if (
            not same and read_meta(Path("copy")).hashes is not None
        ):  # without these it is a folder of an earlier version
            raise SilentChangeError("other tokens than those that were written")
        return outcome


class Begun(Kept):
    """What a preparation that was killed has left: the shards are the same in the end."""

    name = "begun"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        make_folder(folder)
        pieces._DOCUMENTS = 2
        self.flags = ["--kind", "text", "--path", "corpus", "--validation_fraction", "0.3"]
        kept, shutil.rmtree = shutil.rmtree, lambda path, **_: None  # type: ignore[assignment]
        try:
            assert main(["data", "prepare", "out", *self.flags]) == 0
        finally:
            shutil.rmtree = kept
        self.whole = {path.name: path.read_bytes() for path in Path("out").iterdir()}
        Path("whole").mkdir()
        for path in Path(".out.partial").glob("*.npz"):
            path.rename(Path("whole") / path.name)
        assert len(list(Path("whole").iterdir())) == 4
        remove(Path(".out.partial"))

    def use_copy(self, chance: random.Random) -> str:
        damage(self.one_of(chance, "*.npz"), chance)
        remove(Path("out"))
        remove(Path(".out.partial"))
        Path("copy").rename(".out.partial")
        found = command("data", "prepare", "out", *self.flags)
        if found == "accepted" and {path.name: path.read_bytes() for path in Path("out").iterdir()} != self.whole:
            raise SilentChangeError("other shards than those of a run that was left alone")
        return found


class Samples(Kept):
    """Samples of an evaluation and of `mtp data sample`, which another attempt goes on from."""

    name = "samples"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked = batches([(1, 2), (3,), (4, 5)], 2, 2)
        Path("whole").mkdir()
        log = SampleLog(Path("whole/out"), {"seed": 0}, self.asked, 16)
        for batch in self.asked[:3]:
            log.add([(7, 8)] * len(batch.prompts))
        log.close()
        with SampleFile(Path("whole/a.jsonl"), {"temperature": 0.8}) as file:
            file.append([Sample(f"P/{i}", 0, "x = 1", "stop") for i in range(3)], {"tokens": 9, "forwards": 5})

    def use_copy(self, chance: random.Random) -> str:
        damage(self.one_of(chance, "*.jsonl", "*.json"), chance)

        def use() -> None:
            with SampleFile(Path("copy/a.jsonl"), {"temperature": 0.8}) as file:
                file.append([Sample("P/3", 0, "x", "end", earlier=("y",))], {"tokens": 1})
                file.put_in_order([f"P/{i}" for i in range(4)])
            log = SampleLog(Path("copy/out"), {"seed": 0}, self.asked, 16)
            for batch in self.asked[len(log.done) :]:
                log.add([(7, 8)] * len(batch.prompts))
            assert all(len(added) == len(batch.prompts) for added, batch in zip(log.done, self.asked, strict=True))
            log.close()

        return attempt(use)


class Folders(Kept):
    """A model's folder in Hugging Face's layout, imported."""

    name = "folders"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        make_folder(folder)
        assert fit("runs/one", "--trainer.max_steps=3", "--trainer.logger=false") == 0
        flags = ["--to", "hf", "--heads", "1", "--verify", "false", "--shard_gb", "0.00002"]
        assert main(["export", "runs/one", "whole", *flags]) == 0

    def use_copy(self, chance: random.Random) -> str:
        damage(self.one_of(chance, "*.json", "*.safetensors"), chance, pipes=False)
        remove(Path("out.safetensors"))
        found = command("import", "copy", "out.safetensors")
        if (found == "accepted") != Path("out.safetensors").is_file():
            raise SilentChangeError(f"{found}, and the file is {'' if found == 'refused' else 'not '}there")
        return found


KEPT: tuple[type[Target], ...] = (Parts, Shards, Begun, Samples, Folders)
