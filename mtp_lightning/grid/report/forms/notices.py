"""What a reader of a report has to know beside its table."""

from mtp_lightning.grid.report.comparison import Group, Report
from mtp_lightning.grid.report.statistics import countable
from mtp_lightning.grid.report.tuning import some, tuned_text
from mtp_lightning.grid.spec.values import shown


def notices(report: Report) -> list[str]:
    """What a reader has to know beside the table."""
    lines = [f"on top of the grid file: {key} = {shown(value)}" for key, value in report.spec.overridden.items()]
    if parents := dict.fromkeys(cell.parent_label for cell in report.cells if cell.parent_label):
        by = ", by seed" if any(cell.follows for cell in report.cells) else ""
        lines.append(f"begun with the weights of {', '.join(map(str, parents))}{by}")
    if report.choices:
        lines.append(f"tuned on other seeds: {tuned_text(report.choices)}")
    if waits := [name for choice in report.choices for name in choice.waits_for]:
        lines.append(f"the choice waits for {some(waits)}")
    if report.gate.stopped:
        stopped = [f"{one.label} ({report.gate.why(one)})" for one in report.gate.stopped.values()]
        lines.append(f"stopped by the gate, and not compared: {'; '.join(stopped)}")
    if report.gate.waits_for:
        lines.append(f"the gate waits for {some(report.gate.waits_for)}")
    if unjudged := [one.label for one in report.gate.judged if one.value is None]:
        what = f"without {report.gate.metric} at step {report.gate.step}, so let through the gate"
        lines.append(f"{what}: {', '.join(unjudged)}")
    if report.missing:
        count, total = len(report.missing), report.expected
        lines.append(f"incomplete: {count} of {total} cells missing: {some(report.missing)}")
    if report.unfinished:
        lines.append(f"not finished, and compared as far as they are: {some(report.unfinished)}")
    if report.diverged:
        count, total = len(report.diverged), report.expected
        lines.append(f"{count} of {total} cells diverged, so their settings have no mean: {', '.join(report.diverged)}")
    lines += report.equal_training.notes
    absent = [m for m in report.spec.compare if not any(group.by_seed(m) for group in report.groups)]
    if absent and len(report.missing) < report.expected:
        lines.append(f"no finished cell has {', '.join(absent)}")
    for metric in report.metrics:
        seeds = [(g, seed) for g in report.groups for seed in not_finite(g, metric) if seed not in g.diverged]
        if seeds:
            lines.append(f"not finite: {metric} of {', '.join(f'{group.label} seed={seed}' for group, seed in seeds)}")
    return lines + [f"warning: {text}" for text in report.warnings]


def not_finite(group: Group, metric: str) -> list[int]:
    return [seed for seed, value in group.by_seed(metric).items() if not countable(value)]
