"""`mtp bench decode`: what is compared is the same text; ratios, roofline, files; bad input."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from test_checkpoints import save
from tiny import tiny_backbone

from mtp_lightning.bench.decode import decode_command
from mtp_lightning.bench.decode.decode_contenders import Arm, Run, contenders, ours
from mtp_lightning.bench.decode.decode_measure import bench_decode, exactness, read_bandwidth, summarize
from mtp_lightning.bench.decode.decode_models import labels, measured_models
from mtp_lightning.bench.decode.decode_report import FIGURES, decode_table, heads_used_rows, markdown
from mtp_lightning.cli import main
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import Generation, Step
from mtp_lightning.decoding.measure import Difference
from mtp_lightning.decoding.reference import decode_plainly
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel

MakeModel = Callable[..., MTPModel]


class Ticks:
    """A clock that goes on by a second each time it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def rows_of(model: MTPModel, rounds: int = 2, batches: tuple[int, ...] = (1, 2)) -> list[dict[str, Any]]:
    prompts = [torch.randint(0, 16, (6,), generator=torch.Generator().manual_seed(i)) for i in range(4)]
    rows, missing = bench_decode(
        "it", model, prompts, batches, [1, 2, 3], 8, rounds, torch.float32, Ticks(), lambda: None, lambda text: None
    )
    assert missing == ""
    return rows


def test_every_contender_decodes_the_same_text(make_model: MakeModel) -> None:
    model = make_model(3)
    prompts = [torch.arange(5), torch.arange(3, 8)]
    engines, arms, missing = contenders(model, [1, 3], 10, torch.float32, Ticks())
    assert (missing, [engine.heads_used for engine in engines.values()]) == ("", [1, 3])
    assert [arm.label for arm in arms] == ["plain", "k = 3", "k = auto", "huggingface", "huggingface n=1"]
    expected = [decode_plainly(model, prompt, 10) for prompt in prompts]
    for arm, decode in arms.items():
        texts = decode(prompts).texts
        assert [len(text) for text in texts] == [10, 10]
        if arm.name != "huggingface n=1":
            assert texts == expected, arm


def test_a_model_that_is_no_llama_is_measured_without_one(make_model: MakeModel) -> None:
    model = MTPModel(tiny_backbone(n_layers=8), HeadsConfig(n_future=3, kind="anticausal")).eval()
    _, arms, missing = contenders(model, [1, 3], 10, torch.float32, Ticks())
    assert list(arms) == [Arm("ours", 1), Arm("ours", 3), Arm("ours", "auto")]
    assert "do not leave a Llama" in missing


def test_a_run_counts_its_forwards_and_leaves_out_the_first(make_model: MakeModel) -> None:
    """The clock is read before, after every forward of the batch, and at the end."""
    run = ours(Engine(make_model(1)), 1, 9, Ticks())([torch.arange(4), torch.arange(6)])
    assert [len(generation.steps) for generation in run.generations] == [8, 8]
    assert run.seconds == 1 + 8
    assert run.seconds_per_forward == 1.0


def test_what_prompts_take_is_told_apart(make_model: MakeModel) -> None:
    """A second a forward, and five for the prompt."""
    times = iter([0.0, *(6.0 + forward for forward in range(20))])
    run = ours(Engine(make_model(1)), 1, 9, lambda: next(times))([torch.arange(4)])
    assert (run.seconds_per_forward, run.prompt_seconds) == (1.0, 5.0)
    row = summarize(Arm("ours", 1), {Arm("ours", 1): [run]}, 1, 9)
    assert (row["prompt_milliseconds"], row["milliseconds_per_forward"]) == (5000.0, 1000.0)


def test_rows_relate_to_plain_decoding_of_the_same_prompts(make_model: MakeModel) -> None:
    rows = rows_of(make_model(3))
    assert [(row["batch"], row["arm"]) for row in rows[:6]] == [
        (1, "plain"), (1, "k = 2"), (1, "k = 3"), (1, "k = auto"), (1, "huggingface"), (1, "huggingface n=1"),
    ]  # fmt: skip
    for row in rows:
        if row["arm"] == "plain":
            assert row["speedup"] == row["step_cost"] == row["tokens_per_forward"] == 1.0
        if row["arm"].startswith("k"):
            assert 1 <= row["tokens_per_forward"] <= 3
            assert row["efficiency"] == pytest.approx(row["speedup"] / row["tokens_per_forward"])
        if row["arm"] != "huggingface n=1":
            assert (row["texts"], row["equal"]) == (2 * row["batch"], 2 * row["batch"])
        if "share_of_roofline" in row:
            pace = row["tokens_per_forward"] * row["batch"] / (row["milliseconds_per_forward"] / 1e3)
            assert row["share_of_roofline"] == pytest.approx(pace / row["roofline_tokens_per_second"])
        assert not row["steady"], "two rounds are not to be judged"


def generation(*accepted: int) -> Generation:
    """Forwards that verified four tokens each, and accepted so many."""
    return Generation([0] * sum(accepted), [Step(0, [0] * n, [0] * 4) for n in accepted])


def test_a_row_by_hand() -> None:
    """Rounds of two texts of 12 tokens: plain 8 s each, ours 2 to 5 s; a forward of ours costs 1.5 of plain's."""
    mine, plain = Arm("ours", 4), Arm("ours", 1)
    runs = {
        plain: [Run([[], []], 8.0, [generation(1, 1)], 0.2) for _ in range(5)],
        mine: [Run([[], []], seconds, [generation(4, 2)], 0.3) for seconds in (2.0, 4.0, 4.0, 4.0, 5.0)],
        Arm("huggingface"): [Run([[], []], 12.0) for _ in range(5)],
    }
    row = summarize(mine, runs, 2, 12)
    assert (row["tokens_per_second"], row["best_tokens_per_second"]) == (6.0, 12.0)
    assert (row["speedup"], row["best_speedup"]) == (2.0, 4.0)
    assert (row["tokens_per_forward"], row["efficiency"]) == (3.0, 2 / 3)
    assert (row["step_cost"], row["milliseconds_per_forward"]) == pytest.approx((1.5, 300.0))
    assert (row["over_huggingface"], "over_huggingface_n1" in row) == (3.0, False)
    assert row["steady"], "its texts took 2 to 5 s, its forwards were all alike"
    theirs = summarize(Arm("huggingface"), runs, 2, 12)
    assert (theirs["speedup"], "tokens_per_forward" in theirs, "over_huggingface" in theirs) == (8 / 12, False, False)


@pytest.mark.parametrize(
    ("fastest", "rounds", "busy", "steady"),
    [(0.8, 5, 0, True), (0.7, 5, 0, False), (1.0, 4, 0, False), (1.0, 5, 1, False), (1.0, 6, 1, True)],
)
def test_a_row_is_steady_if_the_median_forward_is_near_the_best(
    fastest: float, rounds: int, busy: int, steady: bool
) -> None:
    arm = Arm("ours", 1)
    paces = [fastest, *[1.0] * (rounds - 1)]
    runs = [Run([[]], 8.0, [generation(1)], pace, busy=i < busy) for i, pace in enumerate(paces)]
    row = summarize(arm, {arm: runs}, 1, 8)
    assert (row["steady"], row["busy"]) == (steady, busy)


def test_every_run_is_asked_whether_the_machine_is_busy(make_model: MakeModel) -> None:
    said = iter([None, *[True, False] * 40])
    rows, _ = bench_decode(
        "it", make_model(1), [torch.arange(6)] * 3, [1], [1], 4, 3, torch.float32, Ticks(), lambda: next(said),
        lambda text: None,
    )  # fmt: skip
    assert [row["busy"] for row in rows] == [1, 2], "of three rounds of two arms; one was not looked at"


def test_texts_that_differ_are_ties_or_are_not(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def parts(engine: Any, prompt: torch.Tensor, plain: list[int], text: list[int], _: Any) -> Difference | None:
        return None if plain == text else Difference(0, 0.0, tie=text == [2])

    monkeypatch.setattr("mtp_lightning.bench.decode.decode_measure.first_difference", parts)
    prompts = [[torch.arange(3)] * 2] * 2
    plain, mine = [Run([[1], [1]], 1.0)] * 2, [Run([[1], [2]], 1.0), Run([[3], [1]], 1.0)]
    counts = exactness(Engine(make_model(1)), prompts, plain, mine, torch.float32)
    assert counts == {"texts": 4, "equal": 2, "ties": 1, "different": 1}


def test_every_round_begins_with_another_arm(make_model: MakeModel) -> None:
    said: list[str] = []
    prompts = [torch.arange(6)] * 3
    bench_decode(
        "it", make_model(2), prompts, [1], [1, 2], 4, 3, torch.float32, Ticks(), lambda: None, said.append
    )  # fmt: skip
    rounds = [text.removeprefix("it, batch 1, ").partition(": round ") for text in said if "round" in text]
    arms = ["plain", "k = 2", "k = auto", "huggingface", "huggingface n=1"]
    for number in range(3):
        own = [arm for arm, _, at in rounds if at == f"{number + 1} of 3"]
        assert own == arms[number:] + arms[:number]


def test_bandwidth_is_the_best_of_five() -> None:
    """2**20 bytes, read 2**8 times in 8, 2, 4, 4 and 4 seconds."""
    times = iter([0.0, 8.0, 8.0, 10.0, 10.0, 14.0, 14.0, 18.0, 18.0, 22.0])
    assert read_bandwidth(2**20, lambda: next(times)) == 2**20 * 2**8 / 2.0


@pytest.mark.parametrize("kind", ["linear", "anticausal", "sequential"])
def test_bytes_of_a_forward_without_drafts_are_those_of_the_path(kind: str) -> None:
    """Head 1's own matrix with linear heads, and with anticausal ones every head."""
    model = MTPModel(tiny_backbone(n_layers=6), HeadsConfig(n_future=2, kind=kind))  # type: ignore[arg-type]
    path = [*model.trunk, *(model.heads if kind == "anticausal" else list(model.heads)[:1]), model.unembedding]
    weights = sum(p.numel() for part in path for p in part.parameters() if p.ndim == 2)
    engine = Engine(model, 1)
    assert engine.forward_bytes(1, 1, 0) == 4 * weights


def test_bytes_of_a_forward_are_those_of_the_weights_and_the_keys(make_model: MakeModel) -> None:
    model = make_model(3, n_layers=6, n_kv_heads=1)
    engine = Engine(model, exact_drafts=True)
    path = sum(p.numel() for part in (*model.trunk, model.heads[0]) for p in part.parameters() if p.ndim == 2)
    unembedding = model.unembedding.weight.numel()
    per_position = 2 * 16  # keys and values of one key/value head
    assert engine.forward_bytes(1, 2, 10) == 4 * (path + unembedding + 2 * 10 * 4 * per_position)
    further = sum(p.numel() for head in list(model.heads)[1:] for p in head.parameters() if p.ndim == 2)
    assert engine.forward_bytes(3, 2, 10) == 4 * (path + unembedding + further + 2 * 10 * 6 * per_position)
    assert read_bandwidth(2**16, Ticks()) > 0


def decoded_rows(**changes: Any) -> list[dict[str, Any]]:
    base = {"model": "m", "n_future": 4, "n_layers": 12, "batch": 1, "steady": True, "busy": 0, "texts": 5, "equal": 5}
    base |= {"ties": 0, "different": 0}
    drafted = {
        "over_huggingface_n1": 4.2,
        "over_llama_cpp": 1.2,
        "over_use_mtp": 2.0,
        "tokens_per_second": 420.0,
        "speedup": 2.0,
        "tokens_per_forward": 3.0,
        "step_cost": 1.5,
    }
    return [
        base
        | {"arm": "plain", "heads_used": 1, "tokens_per_second": 210.0, "speedup": 1.0, "tokens_per_forward": 1.0}
        | {"over_huggingface": 1.5, "over_llama_cpp": 0.9, "over_torch": 0.9}
        | {key: value for key, value in changes.items() if key in ("n_layers", "batch", "busy")},
        base | {"arm": "k = 4", "heads_used": 4, "efficiency": 2 / 3} | drafted | changes,
        base | {"arm": "k = auto", "heads_used": "auto", "efficiency": 0.6} | drafted | {"speedup": 0.9},
        base | {"arm": "huggingface", "heads_used": 1, "tokens_per_second": 140.0, "speedup": 0.7},
        base | {"arm": "huggingface n=1", "heads_used": 1, "tokens_per_second": 100.0, "speedup": 0.5},
    ]


def test_tables_have_the_papers_shape() -> None:
    rows = decoded_rows()
    header, lines = heads_used_rows(rows, 1)
    assert header == ["heads used", "m: speed-up", "tokens/forward"]
    assert lines == [["1", "1.00", "1.00"], ["4", "2.00", "3.00"]]
    assert "| 1 | k = 4 | 420 |" in markdown(rows, "here")


def test_a_rate_that_is_not_to_be_judged_stands_in_brackets() -> None:
    rows = decoded_rows(steady=False)  # that of k = 4
    table = decode_table(rows, "title", "caption")
    known = [key for key in FIGURES if any(key in row for row in rows)]
    assert len(table.columns) == 3 + len(known) < 3 + len(FIGURES), "what no row has takes no room"
    assert list(table.columns[2].cells) == ["210", "(420)", "420", "140", "100"]


def test_a_table_of_all_figures_is_readable_without_a_terminal() -> None:
    row = {key: 1234.56 if key.endswith("second") else 9.87 for key in FIGURES}
    row |= {"batch": 8, "arm": "huggingface n=1", "steady": False, "texts": 40, "equal": 38, "ties": 2, "different": 0}
    console = Console(width=decode_command.WIDTH, record=True)
    console.print(decode_table([row], "title", "caption"))
    lines = console.export_text().splitlines()
    assert "…" not in "".join(lines)
    assert [heading for heading, _ in FIGURES.values() if heading not in lines[2]] == [], "each on one line"
    assert "38/40, 2 at ties" in lines[4]


def test_a_batch_is_named_once_and_what_was_not_measured_is_a_dash() -> None:
    rows = decoded_rows() + [row | {"batch": 8, "equal": 3, "ties": 1, "different": 1} for row in decoded_rows()[:2]]
    table = decode_table(rows, "title", "caption")
    assert list(table.columns[0].cells) == ["1", "", "", "", "", "8", ""]
    assert [row.end_section for row in table.rows] == [False] * 4 + [True, False, False]
    (speedup,) = (list(column.cells) for column in table.columns if column.header == "/ plain")
    assert speedup[:4] == ["1.00", "2.00", "0.90", "0.70"]
    assert list(table.columns[-1].cells) == ["5/5"] * 5 + ["3/5, 1 at ties, 1 DIFFERENT"] * 2
    (over_huggingface,) = (list(column.cells) for column in table.columns if column.header == "/ HF")
    assert over_huggingface[:2] == ["1.50", "-"]


def test_the_command_on_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(40):
        (corpus / f"{i}.txt").write_text(f"text number {i} of a small corpus, and some more of it\n" * 4)
    for n in (1, 2):
        save(tmp_path / f"{n}.ckpt", MTPModel(tiny_backbone(vocab_size=256, n_layers=4), HeadsConfig(n_future=n)))
    arguments = ["--kind", "text", "--path", "corpus", "--prompt_tokens", "20", "--new_tokens", "8", "--rounds", "1"]
    command = ["bench", "decode", "--ckpts", "[1.ckpt, 2.ckpt]", "--batch", "[1, 2]", *arguments]
    assert main([*command, "--out", "out"]) == 0
    printed = capsys.readouterr().out
    assert "Decoding: n = 2, L = 4" in printed
    content = json.loads((tmp_path / "out/decode.json").read_text())
    assert {row["equal"] == row["texts"] for row in content["rows"] if "texts" in row} == {True}
    with (tmp_path / "out/results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(content["rows"])
    assert (tmp_path / "out/figure.png").stat().st_size > 10_000
    assert "| heads used | n = 2, L = 4: speed-up |" in (tmp_path / "out/tables.md").read_text()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--rounds", "0"], "rounds is 0"),
        (["--new_tokens", "3"], "new_tokens is 3"),
        (["--patience", ".nan"], "patience is nan: it has to be a number of seconds"),
        (["--batch", "[0]"], "batch is [0]"),
        (["--heads_used", "[5]", "--n_layers", "6", "--dim", "32"], "heads_used is 5: this model has 4"),
        (["--ckpts", "[nothing.ckpt]"], "checkpoint 'nothing.ckpt' is not a file"),
        (["--n_future", "12"], "model.heads.n_future is 12"),
        (["--json", "nowhere/rows.json"], "json: nowhere/rows.json cannot be written"),
        (["--out", __file__], "test_bench_decode.py' is a file, and has to be a folder, or a new name"),
    ],
)
def test_bad_flags_are_refused(
    flags: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "decode", *flags]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_models_have_names_of_their_own(make_model: MakeModel) -> None:
    wide, narrow, two = make_model(3, n_layers=5, dim=64), make_model(3, n_layers=5), make_model(2, n_layers=5)
    assert labels(["a", "runs/b.ckpt", "c"], [wide, narrow, two]) == [
        "n = 3, L = 5, a",
        "n = 3, L = 5, b",
        "n = 2, L = 5",
    ]
    paths = ["x/last.ckpt", "y/last.ckpt"]
    assert labels(paths, [wide, narrow]) == [f"n = 3, L = 5, {path}" for path in paths]
    with pytest.raises(InputError, match="ckpts: 'a' is there twice"):
        labels(["a", "a"], [wide, wide])


def test_shards_of_pairs_are_no_prompts_of_one_length(tmp_path: Path) -> None:
    prepare = ["data", "prepare", str(tmp_path / "shards"), "--kind", "story_pairs", "--max_documents", "100"]
    assert main(prepare) == 0
    model = tmp_path / "a.ckpt"
    save(model, MTPModel(tiny_backbone(vocab_size=256, n_layers=4), HeadsConfig(n_future=1)))
    with pytest.raises(InputError, match="hold pairs, whose questions differ in length: give shards of text"):
        measured_models([str(model)], None, 3, 4, "shards", str(tmp_path / "shards"), tmp_path)


def test_what_is_not_a_number_is_null_in_json() -> None:
    row = {"acceptance": [float("nan"), 0.5], "step_cost": float("nan"), "arm": "plain"}
    assert decode_command._without_nan(row) == {"acceptance": [None, 0.5], "step_cost": None, "arm": "plain"}
