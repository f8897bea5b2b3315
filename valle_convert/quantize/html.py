"""The report as one HTML page that needs nothing else: tables, inline SVG, sound.

First the verdict and the recommendation, then the questions, each with a plot: what does a megabyte
buy (size against divergence, and against the likelihood of true codes), how does it sound, where
is it lost (by head, and tensor by tensor), what does it gain (milliseconds beside F16).
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from valle_convert.errors import EnvironmentFault
from valle_convert.listening.listen import NLL
from valle_convert.quantize import html_sound
from valle_convert.quantize.listening import Listening, pareto_front
from valle_convert.quantize.quality import ALL
from valle_convert.quantize.report import (
    SCAN_TITLE,
    FileReport,
    QuantizeReport,
    TensorReport,
    by_head,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _RED, _GREY = "#2b6cb0", "#c53030", "#a0aec0"
_BLOCK = re.compile(r"blk\.(?P<layer>\d+)\.(?P<kind>.+)")
#: Above so many dB nothing is lost that counts, and beyond this part of a loss the ink is white.
_CLEAN, _DARK = 45.0, 0.5
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 84rem; margin: 2rem auto;
       padding: 0 1rem; color: #1a202c; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.verdict { padding: .6rem 1rem; border-left: .35rem solid #2f855a; background: #f0fff4; }
.verdict.no { border-color: #c53030; background: #fff5f5; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid #e2e8f0; }
th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; } svg { max-width: 100%; min-width: 34rem; height: auto; }
li, code, summary { overflow-wrap: anywhere; } code { white-space: pre-wrap; }
.advice { padding: .6rem 1rem; border-left: .35rem solid #2b6cb0; background: #ebf8ff; }
.map th { text-align: center; } .map td { border: 1px solid #fff; text-align: center; }
.map td:first-child { text-align: left; }
"""


def to_html(report: QuantizeReport) -> str:
    """The page.

    Raises:
        EnvironmentFault: matplotlib is not installed.
    """
    parts = [
        f"<h1>Quantized: {html.escape(report.source)}</h1>",
        f'<p class="verdict{"" if report.passed else " no"}">{html.escape(report.verdict())}</p>',
    ]
    if report.recommendation():
        parts.append(f'<p class="advice">{html.escape(report.recommendation())}</p>')
    parts.append(_table(*report.summary()))
    measured = [file for file in report.files if file.measured]
    if measured:
        rows = [*([report.baseline] if report.baseline else []), *measured]
        parts += [
            "<h2>What a megabyte buys</h2>",
            _svg(plot_size(rows)),
        ]
        parts += _heard(report)
        parts += [
            "<h2>Where it is lost</h2>",
            _svg(plot_heads(rows)),
            "<h2>What it gains</h2>",
            _svg(plot_speed(rows)),
            "<h2>KL mean by head</h2>",
            _table(*by_head(measured, "kl_mean")),
            "<h2>Best code kept, by head</h2>",
            _table(*by_head(measured, "best_code")),
            "<h2>Tensor by tensor</h2>",
            (
                "<p>The type of each matrix and its signal to noise in dB: "
                "the input's weights over what the type changed of them. The darker, the more is "
                "lost.</p>"
            ),
            *(_tensor_map(file) for file in measured if file.tensors),
        ]
    if report.scan:
        parts += [f"<h2>{SCAN_TITLE}</h2>", _table(*report.sensitivities())]
    for file in report.files:
        if file.fallbacks:
            lines = [[f.tensor, str(f.n_columns), f.wanted, f.given] for f in file.fallbacks]
            parts.append(f"<h2>Tensors that {html.escape(file.kind)} cannot hold</h2>")
            parts.append(_table(["tensor", "columns", "type", "became"], lines))
    if report.command:
        parts.append(f"<h2>Again</h2><p><code>{html.escape(report.command)}</code></p>")
    facts = "".join(f"<li>{html.escape(fact)}</li>" for fact in report.facts())
    parts.append(f"<h2>How it was done</h2><ul>{facts}</ul>")
    legend = "".join(f"<li>{html.escape(line)}</li>" for line in report.legend())
    parts.append(f"<h2>What the columns mean</h2><ul>{legend}</ul>")
    title = html.escape(f"Quantized: {report.source}")
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}{html_sound.STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _heard(report: QuantizeReport) -> Iterator[str]:
    if report.listening is None:
        return
    yield "<h2>How likely the true codes are</h2>"
    yield _svg(plot_likelihood(report, report.listening))
    yield "<h2>Hear it</h2><p>The same sentence and seed, file by file.</p>"
    yield from html_sound.players(report)
    for title, table in report.heard():
        yield f"<h2>{html.escape(title)}</h2>{_table(*table)}"
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in report.heard_legend())
    yield f"<ul>{lines}</ul>"


def _tensor_map(file: FileReport) -> str:
    """Kinds of matrices by layers; others in a row of their own."""
    cells: dict[str, dict[str, TensorReport]] = {}
    for one in file.tensors:
        block = _BLOCK.match(one.name)
        layer, kind = (block["layer"], block["kind"]) if block else ("", one.name)
        cells.setdefault(kind.removesuffix(".weight"), {})[layer] = one
    layers = sorted({layer for row in cells.values() for layer in row if layer}, key=int)
    rows = []
    for kind, row in cells.items():
        alone = row.get("")
        shown = (
            _tensor_cell(alone, len(layers))
            if alone
            else "".join(_tensor_cell(row.get(layer), 1) for layer in layers)
        )
        rows.append(f"<tr><td>{html.escape(kind)}</td>{shown}</tr>")
    head = "".join(f"<th>{layer}</th>" for layer in layers)
    return (
        f"<h3>{html.escape(file.kind)}, {file.bits_per_weight:.2f} bits a weight</h3>"
        f'<div class="wide"><table class="map"><tr><th>layer</th>{head}</tr>{"".join(rows)}'
        "</table></div>"
    )


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


def plot_likelihood(report: QuantizeReport, listening: Listening) -> Figure:
    """Size against the negative log likelihood of the true codes, with intervals."""
    figure, axes = _figure(8.5, 4.2)
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
        color = _GREY if file.beyond_noise else _BLUE
        axes.errorbar(
            size,
            difference.mean,
            yerr=[[difference.mean - difference.low], [difference.high - difference.mean]],
            fmt="o",
            capsize=3,
            color=color,
            zorder=3,
        )
        axes.annotate(
            file.kind,
            (size, difference.mean),
            xytext=(7, 4),
            textcoords="offset points",
            fontsize=9,
        )
    _draw_front(axes, points)
    axes.set_xlabel("size of the file, MiB")
    axes.set_ylabel("NLL, nats a code more than F16")
    axes.margins(x=0.12)  # room for the names
    axes.set_title("Size against likelihood of the true codes (grey: beyond the noise of F16)")
    axes.legend(frameon=False, fontsize=9)
    return figure


def _draw_front(axes: Any, points: Mapping[str, tuple[int, float]]) -> None:  # noqa: ANN401
    front = [points[name] for name in pareto_front(points)]
    axes.step(
        [size / 2**20 for size, _ in front],
        [loss for _, loss in front],
        where="post",
        color="#dd6b20",
        linewidth=1,
        linestyle="--",
        zorder=2,
        label="Pareto front: none is both smaller and better",
    )


def plot_size(rows: list[FileReport]) -> Figure:
    """Size against divergence, a point a file."""
    figure, axes = _figure(8.5, 4.2)
    points: dict[str, tuple[int, float]] = {}
    # Neighbours take different sides, so that their names do not lie on each other.
    for i, row in enumerate(sorted(rows, key=lambda row: row.n_bytes)):
        assert row.measured is not None  # noqa: S101 - the caller chose such files
        size, divergence = row.n_bytes / 2**20, row.measured.quality[ALL].kl_mean
        failed = bool(row.faults)
        color = _GREY if row.status == "input" else _RED if failed else _BLUE
        # A divergence of nothing has no place on a logarithmic axis.
        points[row.name] = (row.n_bytes, max(divergence, 1e-12))
        axes.scatter(size, max(divergence, 1e-12), s=60, color=color, zorder=3)
        axes.annotate(
            f"{row.kind} ({row.bits_per_weight:.2f} bits)",
            (size, max(divergence, 1e-12)),
            xytext=(-8, -4) if i % 2 else (8, 4),
            textcoords="offset points",
            ha="right" if i % 2 else "left",
            va="top" if i % 2 else "bottom",
            fontsize=9,
        )
    _draw_front(axes, points)
    axes.legend(frameon=False, fontsize=9)
    axes.set_yscale("log")
    axes.set_xlabel("size of the file, MiB")
    axes.set_ylabel("KL divergence, mean, nats")
    axes.set_title("Size against divergence (lower left is better; grey: input, red: beyond limit)")
    axes.margins(y=0.15)
    low, high = axes.get_xlim()
    axes.set_xlim(low - 0.2 * (high - low), high + 0.2 * (high - low))  # room for the names
    return figure


def plot_heads(rows: list[FileReport]) -> Figure:
    """Divergence by head, a line a file."""
    figure, axes = _figure(10, 4.4)
    for i, row in enumerate(rows):
        assert row.measured is not None  # noqa: S101 - the caller chose such files
        quality = {head: one for head, one in row.measured.quality.items() if head != ALL}
        values = [max(one.kl_mean, 1e-12) for one in quality.values()]
        color = _GREY if row.status == "input" else f"C{i}"
        axes.plot(list(quality), values, marker="o", label=row.kind, color=color)
    axes.set_yscale("log")
    axes.set_ylabel("KL divergence, mean, nats")
    axes.set_title("Divergence by head: nar.1 to nar.7 are the levels above level 0")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def plot_speed(rows: list[FileReport]) -> Figure:
    """Milliseconds of an AR step and of a NAR pass, a bar a file."""
    from matplotlib.figure import Figure

    check_matplotlib()
    figure = Figure(figsize=(10, 0.9 + 0.42 * len(rows)), layout="constrained")
    names = [row.kind for row in rows]
    colors = [_GREY if row.status == "input" else _BLUE for row in rows]
    for axes, title, values in zip(
        figure.subplots(1, 2),
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
        axes.invert_yaxis()
        axes.set_xlabel("milliseconds, median")
        axes.set_title(title)
        axes.set_xlim(0, max(values) * 1.18)
        _quiet(axes, "x")
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _quiet(axes, "both")
    return figure, axes


def _quiet(axes: Any, grid: str) -> None:  # noqa: ANN401 - matplotlib's own
    axes.grid(visible=True, axis=grid, color="#e2e8f0", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(11)


def check_matplotlib() -> None:
    """Find out whether plots can be drawn, before there is anything to draw.

    Raises:
        EnvironmentFault: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise EnvironmentFault(
            "matplotlib is not installed, and the HTML report has plots; "
            "pip install 'valle-convert[report]', or give a .md or .json file for the report."
        )


def _svg(figure: Figure) -> str:
    """Inline SVG, the same bytes for the same figure."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "valle-convert", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"<\?xml.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)
    return f'<div class="wide">{text}</div>'


def _table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
