"""The report as one HTML page that needs nothing else: tables, inline SVG, sound.

First the answer: which file to take, and what it costs. Then the verdict and a table of what
decided it; below that everything else that was measured.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from valle_convert.errors import EnvironmentFault
from valle_convert.extras import install
from valle_convert.listening.listen import NLL
from valle_convert.quantize import html_sound
from valle_convert.quantize.advice import nearness
from valle_convert.quantize.listening import Listening, pareto_front
from valle_convert.quantize.measurements import TensorReport
from valle_convert.quantize.quality import ALL
from valle_convert.quantize.report import (
    BEYOND,
    BY_HEAD,
    DETAILS_TITLE,
    TITLE,
    WRONG,
    EvaluationReport,
    FileReport,
    by_head,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _RED, _GREY, _ORANGE = "#2b6cb0", "#c53030", "#808080", "#dd6b20"
_BLOCK = re.compile(r"blk\.(?P<layer>\d+)\.(?P<kind>.+)")
_LEVEL = re.compile(r"nar\.\d+")
_INTERVAL = re.compile(r"\((\S+) to (\S+)\)")
#: Above so many dB nothing is lost that counts, and beyond this part of a loss the ink is white.
_CLEAN, _DARK = 45.0, 0.5
#: A table with more columns, or with intervals, is shown row by row on a narrow screen.
_NARROW = 6
#: Of plots, inches; and of their legends: columns, and how long a word may be to stand in them.
_WIDTH, _LEGEND_COLUMNS, _SHORT = 6.5, 5, 12
#: Words of the tables that have a colour.
_MARKS = {
    WRONG: "bad",
    BEYOND: "bad",
    "very close": "near",
    "close": "near",
    "changed": "warn",
    "far": "bad",
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 106rem; margin: 1.5rem auto;
       padding: 0 1rem; color: #1a202c; background: #fff; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
h3 { font-size: 1rem; margin: .5rem 0; } h1, h2, h3, p, li { overflow-wrap: anywhere; }
.top { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: flex-start; }
.top > div { min-width: 0; } .top > div:first-child { flex: 1 1 min(100%, 34rem); }
.answer { margin-bottom: 1rem; padding: .8rem 1rem; background: #ebf8ff;
          border-left: .35rem solid #2b6cb0; }
.answer h2 { font-size: 1.6rem; margin: 0; }
dl { display: flex; flex-wrap: wrap; gap: .4rem 2rem; margin: .5rem 0; } dt { color: #4a5568; }
dd { margin: 0; font-size: 1.25rem; font-weight: 600; }
.verdict { margin: 0; padding: .6rem 1rem; border-left: .35rem solid #2f855a;
           background: #f0fff4; }
.verdict.warn { border-color: #b7791f; background: #fffff0; }
.verdict.bad { border-color: #c53030; background: #fff5f5; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem;
        max-width: 100%; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e2e8f0;
         vertical-align: top; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
td.near { color: #276749; } td.warn { color: #975a16; } td.bad { color: #c53030; }
td.near, td.warn, td.bad { font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 32rem), 1fr));
         gap: 1rem 2rem; } .plots section { min-width: 0; }
svg { display: block; width: 100%; height: auto; }
code { white-space: pre-wrap; overflow-wrap: anywhere; } summary { overflow-wrap: anywhere; }
.map { table-layout: fixed; width: 100%; max-width: 60rem; } .map th { text-align: center; }
.map td { border: 1px solid #fff; text-align: center; padding: .15rem; }
.map th { padding: .15rem; } .map th, .map td { overflow-wrap: anywhere; }
.map td:first-child { text-align: left; }
@media (max-width: 70rem) {
  th, td { padding: .25rem .35rem; }
  table.many, .many tbody, .many tr, .many td { display: block; } .many tr:first-child
  { display: none; } .many tr { margin-bottom: .8rem; }
  .many td, .many td:first-child { text-align: right; display: flex; gap: 1rem;
    justify-content: space-between; max-width: 32rem; }
  .many td::before { content: attr(data-name); color: #4a5568; }
  .many td:first-child { font-weight: 600; } .map { font-size: .7rem; }
}
"""


def to_html(report: EvaluationReport) -> str:
    """The page."""
    parts = [
        f"<h1>{TITLE}: {html.escape(report.source)}</h1>",
        f'<div class="top"><div>{_answer(report)}',
        f'<p class="{_verdict_class(report)}">{html.escape(report.verdict())}</p></div>',
        f"<div>{_table(*report.answer())}</div></div>",
    ]
    measured = [file for file in report.files if file.measured]
    if measured:
        parts.append(f'<div class="plots">{"".join(_plots(report, measured))}</div>')
    if report.listening is not None:
        parts.append("<h2>Samples</h2><p>The same sentence and seed, file by file.</p>")
        parts += html_sound.players(report)
    parts += [f"<h2>{DETAILS_TITLE}</h2>", _table(*report.details())]
    for title, table in report.heard():
        parts.append(f"<h2>{html.escape(title)}</h2>{_table(*table)}")
    parts.append(_list(report.heard_legend()))
    if measured:
        parts += [
            f"<h2>{title}</h2>{_table(*by_head(measured, of))}" for title, of in BY_HEAD.items()
        ]
        parts += [
            "<h2>Matrices</h2>",
            (
                "<p>The type of each matrix and its signal to noise in dB: "
                "the input's weights over what the type changed of them. The darker, the more is "
                "lost.</p>"
            ),
            *(_tensor_map(file) for file in measured if file.tensors),
        ]
    if report.command:
        parts.append(f"<h2>Command</h2><p><code>{html.escape(report.command)}</code></p>")
    parts.append(f"<h2>How this was made</h2>{_list(report.facts())}")
    parts.append(f"<h2>What the columns mean</h2>{_list(report.legend())}")
    title = html.escape(f"{TITLE}: {report.source}")
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}{html_sound.STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _answer(report: EvaluationReport) -> str:
    """Which file to take, its numbers, and how it sounds; or why none is recommended."""
    said = report.recommendation()
    if not said:
        return ""
    taken = report.advice().take
    if taken is None:
        return f'<section class="answer"><p>{html.escape(said)}</p></section>'
    numbers = {
        "size": f"{taken.n_bytes / 2**20:,.1f} MiB",
        "KL mean": f"{taken.kl:.2g}",
        "top-1 agreement": f"{taken.top_1:.1%}",
    }
    shown = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in numbers.items()
    )
    return (
        f'<section class="answer"><h2>Take {html.escape(taken.name)}</h2><dl>{shown}</dl>'
        f"<p>{html.escape(said)}</p>{html_sound.first_clips(report, taken.name)}</section>"
    )


def _verdict_class(report: EvaluationReport) -> str:
    """Green only where every file is right and near the reference."""
    if not report.passed:
        return "verdict bad"
    near = [file.kl is not None and _MARKS[nearness(file.kl)] == "near" for file in report.files]
    return "verdict" if all(near) else "verdict warn"


def _plots(report: EvaluationReport, measured: Sequence[FileReport]) -> Iterator[str]:
    rows = [*([report.baseline] if report.baseline else []), *measured]
    yield _plot("Size and divergence", plot_size(rows))
    if report.listening is not None:
        likelihood = plot_likelihood(report, report.listening)
        yield _plot("Size and likelihood of the true codes", likelihood)
    yield _plot(f"Divergence by head{_levels(measured[0])}", plot_heads(rows))
    yield _plot("Speed", plot_speed(rows))


def _levels(file: FileReport) -> str:
    """What the heads of levels are called, where there are some."""
    found = [
        head for head in (file.measured.quality if file.measured else ()) if _LEVEL.match(head)
    ]
    if len(found) < 2:
        return f" ({found[0]} is the level above level 0)" if found else ""
    return f" ({found[0]} to {found[-1]} are the levels above level 0)"


def _plot(title: str, figure: Figure) -> str:
    return f"<section><h3>{html.escape(title)}</h3>{_svg(figure)}</section>"


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>"


def _tensor_map(file: FileReport) -> str:
    """Layers by kinds of matrices; others in a row of their own."""
    layers: dict[tuple[str, int], dict[str, TensorReport]] = {}
    others: list[TensorReport] = []
    for one in file.tensors:
        block = _BLOCK.match(one.name)
        if block is None:
            others.append(one)
            continue
        kind = block["kind"].removesuffix(".weight")
        layers.setdefault((_part_of(one), int(block["layer"])), {})[kind] = one
    kinds = list(dict.fromkeys(kind for row in layers.values() for kind in row))
    rows = [
        f"<tr><td>{html.escape(_part_of(one) + one.name.removesuffix('.weight'))}</td>"
        f"{_tensor_cell(one, max(1, len(kinds)))}</tr>"
        for one in others
    ]
    for (part, layer), row in layers.items():
        cells = "".join(_tensor_cell(row.get(kind), 1) for kind in kinds)
        rows.append(f"<tr><td>{html.escape(part)}layer {layer}</td>{cells}</tr>")
    head = "".join(f"<th>{html.escape(kind)}</th>" for kind in kinds)
    return (
        f"<h3>{html.escape(file.kind)}, {file.bits_per_weight:.2f} bits a weight</h3>"
        f'<table class="map"><tr><th></th>{head}</tr>{"".join(rows)}</table>'
    )


def _part_of(one: TensorReport) -> str:
    return f"{one.part}: " if one.part else ""


def _tensor_cell(one: TensorReport | None, span: int) -> str:
    if one is None:
        return "<td></td>"
    exact = one.snr_db is None or math.isinf(one.snr_db)
    noise = "" if one.snr_db is None or exact else f" {one.snr_db:.0f}"
    lost = 0.0 if one.snr_db is None or exact else min(max((_CLEAN - one.snr_db) / _CLEAN, 0), 1)
    # From white to a dark blue; the text turns with it.
    shade = ", ".join(str(round(255 - lost * (255 - end))) for end in (23, 55, 94))
    ink = "#fff" if lost > _DARK else "#1a202c"
    return (
        f'<td colspan="{span}" style="background: rgb({shade}); color: {ink}" '
        f'title="{html.escape(one.name)}: {one.bits:g} bits a weight">'
        f"{html.escape(one.kind)}{noise}</td>"
    )


def plot_likelihood(report: EvaluationReport, listening: Listening) -> Figure:
    """Size against the negative log likelihood of the true codes, with intervals."""
    figure, axes = _figure(4.4)
    base = listening.baseline.total(NLL)
    assert base is not None  # noqa: S101 - a model that speaks has heads
    error = base.estimate().error
    axes.axhspan(0, error, color="#bee3f8", zorder=0, label="within a standard error of F16")
    points: dict[str, tuple[int, float]] = {}
    for file in report.files:
        tally = file.listened.total(NLL) if file.listened else None
        if tally is None:
            continue
        difference = tally.minus(base)
        size = file.n_bytes / 2**20
        points[file.kind] = (file.n_bytes, difference.mean)
        axes.errorbar(
            size,
            difference.mean,
            yerr=[[difference.mean - difference.low], [difference.high - difference.mean]],
            fmt="o",
            capsize=3,
            color=_RED if file.beyond_noise else _BLUE,
            label="beyond the noise of F16" if file.beyond_noise else "within the noise of F16",
            zorder=3,
        )
        _name(axes, file.kind, size, difference.mean)
    _draw_front(axes, points)
    axes.set_xlabel("size of the file, MiB")
    axes.set_ylabel("NLL, nats a code more than F16")
    axes.margins(x=0.2)  # room for the names
    _legend(figure, axes)
    return figure


def _name(axes: Any, name: str, x: float, y: float) -> None:  # noqa: ANN401 - matplotlib's own
    """Right above a point, where no smaller and no better one lies."""
    axes.annotate(name, (x, y), xytext=(6, 3), textcoords="offset points", fontsize=9)


def _draw_front(axes: Any, points: Mapping[str, tuple[int, float]]) -> None:  # noqa: ANN401
    front = [points[name] for name in pareto_front(points)]
    axes.step(
        [size / 2**20 for size, _ in front],
        [loss for _, loss in front],
        where="post",
        color=_ORANGE,
        linewidth=1,
        linestyle="--",
        zorder=2,
        label="no file is both smaller and better",
    )


def plot_size(rows: Sequence[FileReport]) -> Figure:
    """Size against divergence, a point a file."""
    figure, axes = _figure(4.4)
    points: dict[str, tuple[int, float]] = {}
    for row in rows:
        assert row.kl is not None  # noqa: S101 - the caller chose such files
        color, label = _BLUE, "quantized"
        if row.is_baseline:
            color, label = _GREY, "baseline"
        elif row.faults:
            color, label = _RED, "wrong, or beyond a limit"
        # A divergence of nothing has no place on a logarithmic axis.
        size, divergence = row.n_bytes / 2**20, max(row.kl, 1e-12)
        points[row.name] = (row.n_bytes, divergence)
        axes.scatter(size, divergence, s=60, color=color, label=label, zorder=3)
        _name(axes, f"{row.kind} ({row.bits_per_weight:.2f} bits)", size, divergence)
    _draw_front(axes, points)
    axes.set_yscale("log")
    axes.set_xlabel("size of the file, MiB")
    axes.set_ylabel("KL divergence, mean, nats")
    axes.margins(x=0.08, y=0.15)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + 0.35 * (high - low))  # room for the last name
    _legend(figure, axes)
    return figure


def plot_heads(rows: Sequence[FileReport]) -> Figure:
    """Divergence by head, a line a file."""
    figure, axes = _figure(4 + 0.2 * (len(rows) / _LEGEND_COLUMNS))
    for i, row in enumerate(rows):
        assert row.measured is not None  # noqa: S101 - the caller chose such files
        quality = {head: one for head, one in row.measured.quality.items() if head != ALL}
        values = [max(one.kl_mean, 1e-12) for one in quality.values()]
        color = _GREY if row.is_baseline else f"C{i}"
        axes.plot(list(quality), values, marker="o", label=row.kind, color=color)
    axes.set_yscale("log")
    axes.set_ylabel("KL divergence, mean, nats")
    _legend(figure, axes)
    return figure


def plot_speed(rows: Sequence[FileReport]) -> Figure:
    """Milliseconds of an AR step and of a NAR pass, a bar a file."""
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 0.9 + 0.42 * len(rows)), layout="constrained")
    names = [row.kind for row in rows]
    colors = [_GREY if row.is_baseline else _BLUE for row in rows]
    for axes, title, values in zip(
        figure.subplots(1, 2, sharey=True),
        ("one AR step", "one NAR pass"),
        (
            [row.measured.speed.ar_step for row in rows if row.measured],
            [row.measured.speed.nar_pass for row in rows if row.measured],
        ),
        strict=True,
    ):
        bars = axes.barh(names, values, color=colors, zorder=3)
        labels = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values]
        axes.bar_label(bars, labels, padding=3, fontsize=9)
        axes.set_xlabel("milliseconds, median")
        axes.set_title(title, fontsize=11)
        axes.set_xlim(0, max(values) * 1.3)
        _quiet(axes, "x")
    axes.invert_yaxis()  # both have the same
    return figure


def _figure(height: float) -> tuple[Figure, Any]:
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots()
    _quiet(axes, "both")
    return figure, axes


def _legend(figure: Figure, axes: Any) -> None:  # noqa: ANN401 - matplotlib's own
    """Below the axes, where nothing is drawn; each entry once."""
    handles, labels = axes.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    columns = 2 if max(map(len, entries)) > _SHORT else _LEGEND_COLUMNS
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=min(columns, len(entries)),
        frameon=False,
        fontsize=9,
    )


def _quiet(axes: Any, grid: str) -> None:  # noqa: ANN401 - matplotlib's own
    axes.grid(visible=True, axis=grid, color="#e2e8f0", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def check_matplotlib() -> None:
    """Find out whether plots can be drawn, before there is anything to draw."""
    if find_spec("matplotlib") is None:
        raise EnvironmentFault(
            "matplotlib is not installed, and the HTML report has plots. "
            f"Run {install('report')}, or give a .md or .json file for the report."
        )


def _svg(figure: Figure) -> str:
    """Inline SVG, the same bytes for the same figure."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "valle-convert", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"<\?xml.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(map(_table_cell, header, row))}</tr>" for row in rows)
    is_wide = len(header) > _NARROW or any(_INTERVAL.search(cell) for row in rows for cell in row)
    many = ' class="many"' if is_wide else ""
    return f"<table{many}><tr>{head}</tr>{body}</table>"


def _table_cell(name: str, cell: str) -> str:
    mark = f' class="{_MARKS[cell]}"' if cell in _MARKS else ""
    shown = _INTERVAL.sub(r"(\1&nbsp;to&nbsp;\2)", html.escape(cell))
    return f'<td{mark} data-name="{html.escape(name)}">{shown}</td>'
