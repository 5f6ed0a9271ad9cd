"""Pictures of attention heads, layer by layer, and of keys that are found, as PNG. Matplotlib is loaded where one is
drawn."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mtp_lightning.probes.attention import AttentionScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SCORES = {"prefix_matching": "prefix matching (induction)", "previous_token": "previous token"}
FRAMES = 8
"""Of a film strip, at most."""


def heat_map(scores: AttentionScores, title: str) -> bytes:
    """Both scores of every attention head: layers downwards, the trunk's first, attention heads across."""
    from matplotlib.figure import Figure

    rows, columns = scores.prefix_matching.shape
    figure = Figure(figsize=(2.6 + 0.75 * columns, 1.4 + 0.42 * rows), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (name, label) in zip(panels, SCORES.items()):
        image = _panel(axes, scores, name, numbers=True)
        axes.set_title(label, fontsize=10)
        axes.set_xlabel("attention head")
    panels[0].set_yticks(range(rows), [layer.replace("_", " ") for layer in scores.layers])
    figure.colorbar(image, ax=panels, fraction=0.05, label="score")
    figure.suptitle(title, fontsize=12, fontweight="bold")
    return _png(figure)


def film_strip(frames: Sequence[tuple[int, AttentionScores]], title: str) -> bytes:
    """The heat maps of a run in the order of its steps, a column each; of more than 8 those evenly spread, first and
    last among them."""
    from matplotlib.figure import Figure

    chosen = sorted({round(i * (len(frames) - 1) / (FRAMES - 1)) for i in range(FRAMES)})
    frames = [frames[i] for i in chosen]
    rows = len(frames[0][1].layers)
    figure = Figure(figsize=(1.8 + 1.35 * len(frames), 1.6 + 0.6 * rows), layout="constrained")
    grid = figure.subplots(2, len(frames), squeeze=False, sharex=True, sharey=True)
    for panels, (name, label) in zip(grid, SCORES.items()):
        for axes, (step, scores) in zip(panels, frames):
            image = _panel(axes, scores, name, numbers=False)
            if name == "prefix_matching":
                axes.set_title(f"step {step:,}", fontsize=9)
        panels[0].set_ylabel(label, fontsize=9)
        panels[0].set_yticks(range(rows), [layer.replace("_", " ") for layer in frames[0][1].layers], fontsize=8)
    figure.colorbar(image, ax=grid, fraction=0.03, label="score")
    figure.supxlabel("attention head", fontsize=9)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    return _png(figure)


def retrieval_map(shares: Mapping[tuple[int, float], float], title: str) -> bytes:
    """The share of keys found: lengths across, depths downwards, the beginning of the text at the top."""
    from matplotlib.figure import Figure

    lengths, depths = (sorted({pair[i] for pair in shares}) for i in range(2))
    values = [[shares[length, depth] for length in lengths] for depth in depths]  # type: ignore[index]
    figure = Figure(figsize=(2.6 + 0.8 * len(lengths), 1.6 + 0.4 * len(depths)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
    for (row, column), value in _entries(values):
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.set_xlabel("context (tokens)")
    axes.set_ylabel("depth of the key")
    figure.colorbar(image, ax=axes, label="share found")
    figure.suptitle(title, fontsize=12, fontweight="bold")
    return _png(figure)


def _panel(axes: "Axes", scores: AttentionScores, name: str, numbers: bool) -> "AxesImage":
    values = getattr(scores, name)
    image = axes.imshow(values.numpy(), vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
    axes.set_xticks(range(values.shape[1]))
    if numbers:
        for (row, column), value in _entries(values.tolist()):
            colour = "white" if value < 0.6 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    return image


def _entries(values: Sequence[Sequence[float]]) -> list[tuple[tuple[int, int], float]]:
    return [((i, j), value) for i, row in enumerate(values) for j, value in enumerate(row)]


def _png(figure: "Figure") -> bytes:
    """Drawn without pyplot, so no global figure or backend remains."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120)
    return out.getvalue()
