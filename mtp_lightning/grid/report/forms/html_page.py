"""A report as one static page: nothing is loaded from elsewhere and nothing runs. It reads well on a phone, on paper
and in the dark."""

import base64
from collections.abc import Sequence
from html import escape

from mtp_lightning.grid.report.comparison import Group, Report
from mtp_lightning.grid.report.forms.notices import notices
from mtp_lightning.grid.report.forms.tables import Heading, Layout, Numbers, intervals, legend, stage_tables
from mtp_lightning.grid.report.judge import verdict
from mtp_lightning.grid.report.metric_names import format_value
from mtp_lightning.grid.report.verdict import Verdict
from mtp_lightning.units import counted

_BADGES = {True: "difference", False: "no difference", None: "no verdict"}
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load: a second wall besides the escaping of all texts."""

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1c2430; --soft: #5b6675; --line: #e2e6ec;
  --blue: #0b65a8; --green: #0a7a4b; --red: #b3372a; --amber: #8a5a00; --tint: #eef4fa; --tint-amber: #fdf5e3; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1a2029; --text: #e4e9f0; --soft: #9aa6b5;
  --line: #2c3541; --blue: #6cb6f5; --green: #5fd39a; --red: #ff8f7f; --amber: #f0c36a; --tint: #1e2a38;
  --tint-amber: #2b2618; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, sans-serif; overflow-wrap: anywhere; }
main { max-width: 76rem; margin: 0 auto; padding: 2rem 1.25rem 3rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .25rem; letter-spacing: -.01em; }
h2 { font-size: 1.1rem; margin: 2.25rem 0 .6rem; }
.summary, .legend, footer { color: var(--soft); font-size: .9rem; }
.summary { margin: 0 0 1.25rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.verdict { padding: 1.1rem 1.35rem 1.2rem; border-left: 5px solid var(--amber); }
.verdict.difference { border-left-color: var(--green); }
.verdict.no-difference { border-left-color: var(--blue); }
.verdict p { font-size: 1.2rem; line-height: 1.5; margin: .55rem 0 0; }
.badge { display: inline-block; margin-right: .4rem; padding: .1rem .65rem; border-radius: 99px; font-size: .8rem;
  font-weight: 600; background: var(--tint); color: var(--blue); }
.badge.provisional, .badge.no-verdict, .badge.warnings { background: var(--tint-amber); color: var(--amber); }
.badge.difference { color: var(--green); }
.notices { margin: 1rem 0 0; padding: .8rem 1.35rem .8rem 2.4rem; background: var(--tint-amber); font-size: .95rem; }
.notices li { margin: .2rem 0; }
.notices .warning { color: var(--red); font-weight: 600; }
.scroll { overflow-x: auto; overflow-wrap: normal; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .9rem; text-align: right; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; }
tbody tr:last-child > * { border-bottom: 0; }
tr > :first-child { text-align: left; position: sticky; left: 0; background: var(--card); font-weight: 600; }
th small, td small { display: block; color: var(--soft); font-weight: 400; font-size: .84em; }
td small.better { color: var(--green); }
td small.worse { color: var(--red); }
figure { margin: 0; padding: .6rem; background: #fff; }
img { display: block; width: 100%; min-width: 42rem; height: auto; }
footer { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: .8rem; }
a { color: var(--blue); }
@media (max-width: 40rem) { main { padding: 1.1rem .75rem 2rem; } h1 { font-size: 1.5rem; }
  .verdict p { font-size: 1.05rem; } th, td { padding: .4rem .6rem; }
  tr > :first-child { min-width: 8.5rem; max-width: 42vw; white-space: normal; overflow-wrap: anywhere; } }
@media print { :root { color-scheme: light; --page: #fff; --card: #fff; --text: #000; --soft: #444; --line: #bbb;
    --blue: #0b4f85; --green: #06623b; --red: #96281d; --amber: #6b4600; --tint: #fff; --tint-amber: #fff; }
  body { font-size: 10pt; } main { max-width: none; padding: 0; } .scroll { overflow: visible; }
  img { min-width: 0; } h2 { break-after: avoid; } tr > :first-child { position: static; }
  th, td { padding: .2rem .4rem; white-space: normal; } .card, tr { break-inside: avoid; } }
"""


def html_page(report: Report, figure: bytes | None) -> str:
    """Verdict, notices, compared metrics, figure, all other metrics, every seed.

    Args:
        figure: a PNG; None where there is none.
    """
    found, name = verdict(report), escape(report.spec.name)
    coloured = " Called better or worse: those whose interval leaves out 0." if intervals(report) else ""
    others = [metric for metric in report.metrics if metric not in report.spec.compare]
    parts = [
        f"<h1>{name}</h1>",
        f'<p class="summary">{escape(_summary(report))}</p>',
        _verdict(found),
        _notices(notices(report)),
        "<h2>Compared</h2>",
        _table(Layout.of(report, report.spec.compare)),
        f'<p class="legend">{escape(legend(report, "below"))}{coloured}</p>',
        *_ladders(report),
        *(f"<h2>{escape(title)}</h2>{_plain_table(rows)}" for title, rows in stage_tables(report)),
        _figure(figure, found.title),
        f"<h2>Other metrics</h2>{_table(Layout.of(report, others))}" if others else "",
        f"<h2>Every seed: {escape(found.title)}</h2>",
        _seeds_table(report, found.metric),
        '<footer>For programs: <a href="verdict.json">verdict.json</a>, <a href="results.csv">results.csv</a>. To '
        'quote: <a href="report.md">report.md</a>, <a href="figure.png">figure.png</a>.</footer>',
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        f"<title>{name}: report</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, parts))
        + "\n</main>\n</body>\n</html>\n"
    )


def _summary(report: Report) -> str:
    total, diverged = report.expected, len(report.diverged)
    finished = f"{total - len(report.missing) - len(report.unfinished) - diverged} of {total} cells finished"
    finished += f", {diverged} diverged" if diverged else ""
    return f"{counted(len(report.groups), 'setting')}, {counted(len(report.spec.seeds), 'seed')}; {finished}"


def _verdict(found: Verdict) -> str:
    badges = [_BADGES[found.is_difference]]
    badges += ["provisional"] if found.provisional else []
    badges += ["warnings"] if found.warnings else []
    shown = "".join(f'<span class="badge {badge.replace(" ", "-")}">{badge}</span>' for badge in badges)
    kind = _BADGES[found.is_difference].replace(" ", "-")
    return f'<section class="card verdict {kind}">{shown}<p>{escape(found.sentence)}</p></section>'


def _notices(lines: Sequence[str]) -> str:
    def item(line: str) -> str:
        kind = ' class="warning"' if line.startswith("warning: ") else ""
        return f"<li{kind}>{escape(line[0].upper() + line[1:])}</li>"

    items = map(item, lines)
    return f'<ul class="card notices">{"".join(items)}</ul>' if lines else ""


def _table(layout: Layout) -> str:
    rows = [[_heading(name), *(_numbers(numbers) for numbers in row)] for name, row in layout.rows]
    return _html_table([f"<th>{layout.corner}</th>", *map(_heading, layout.columns)], rows)


def _seeds_table(report: Report, metric: str) -> str:
    """Every value of one metric, seeds as columns."""
    seeds = sorted({seed for group in report.groups for seed in group.seeds})

    def cell(group: Group, seed: int) -> str:
        if seed in group.diverged:
            return "<td>diverged</td>"
        value = group.by_seed(metric).get(seed)
        missing = "missing" if seed in group.seeds and seed not in group.results else "–"
        return f"<td>{missing if value is None else escape(format_value(metric, value))}</td>"

    rows = [[_heading(Heading(g.label)), *(cell(g, seed) for seed in seeds)] for g in report.groups]
    return _html_table(["<th>setting</th>", *(f"<th>seed {seed}</th>" for seed in seeds)], rows)


def _ladders(report: Report) -> list[str]:
    """What the arms are worth: the tables, and the lines beside them."""
    if not report.ladders:
        return []
    from mtp_lightning.grid.report.ladder import texts  # numpy

    parts = [f"<h2>{texts.HEADING}</h2>"]
    for ladder in report.ladders:
        parts.append(_plain_table(texts.rows(ladder)))
        parts.append("".join(f'<p class="legend">{escape(line)}</p>' for line in texts.lines(ladder)))
    return [*parts, f'<p class="legend">{escape(texts.LEGEND)}</p>']


def _plain_table(rows: Sequence[Sequence[str]]) -> str:
    """Of texts; the head is the first row."""
    head, *rest = rows
    cells = [[_heading(Heading(row[0])), *(f"<td>{escape(text)}</td>" for text in row[1:])] for row in rest]
    return _html_table([_heading(Heading(name)) for name in head], cells)


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return (
        f'<div class="card scroll"><table>\n<thead><tr>{"".join(head)}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _heading(heading: Heading) -> str:
    details = f"<small>{escape(heading.details)}</small>" if heading.details else ""
    name = escape(heading.name).replace("/", "/<wbr>").replace("_", "_<wbr>")  # where a line may break
    return f"<th>{name}{details}</th>"


def _numbers(numbers: Numbers) -> str:
    if not numbers.difference:
        return f"<td>{escape(numbers.mean)}</td>"
    kind = f' class="{numbers.effect}"' if numbers.effect else ""
    remark = f" {numbers.effect}" if numbers.effect else ""
    return f"<td>{escape(numbers.mean)}<small{kind}>{escape(numbers.difference)}{remark}</small></td>"


def _figure(png: bytes | None, title: str) -> str:
    if png is None:
        return ""
    data = base64.b64encode(png).decode()
    alt = escape(f"{title} while the settings learn, and how they compare")
    return f'<h2>Picture</h2><figure class="card scroll"><img alt="{alt}" src="data:image/png;base64,{data}"></figure>'
