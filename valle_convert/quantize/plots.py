"""The plots of the HTML report, as inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from valle_convert.listening.listen import NLL
from valle_convert.quantize.listening import Listening, pareto_front
from valle_convert.quantize.measurements import Evaluated
from valle_convert.quantize.quality import ALL
from valle_convert.quantize.report import EvaluationReport

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

_BLUE, _RED, _GREY, _ORANGE = "#2b6cb0", "#c53030", "#808080", "#dd6b20"
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": "#e2e8f0",
}
#: Of plots, inches; and of their legends: columns, and how long a word may be to stand in them.
_WIDTH, _LEGEND_COLUMNS, _SHORT = 6.5, 5, 12


def plots(report: EvaluationReport) -> Iterator[tuple[str, Figure]]:
    if not report.measured:
        return
    rows = [report.compared.baseline, *report.measured]
    yield "Size and divergence", plot_size(rows)
    if report.listening is not None:
        yield "Size and likelihood of the true codes", plot_likelihood(report, report.listening)
    yield "Divergence by head", plot_heads(rows)
    yield "Speed", plot_speed(rows)


def plot_likelihood(report: EvaluationReport, listening: Listening) -> Figure:
    """Size against the negative log likelihood of the true codes, with intervals."""
    figure, axes = _figure(4.4)
    base = listening.baseline.total(NLL)
    assert base is not None  # noqa: S101 - a model that speaks has heads
    error = base.estimate().error
    axes.axhspan(0, error, color="#bee3f8", zorder=0, label="within a standard error of F16")
    points: list[tuple[float, float]] = []
    for file in report.files:
        tally = file.speech.listened.total(NLL) if file.speech else None
        if file.speech is None or tally is None:
            continue
        color, noise = (_RED, "beyond") if file.speech.beyond_noise else (_BLUE, "within")
        difference = tally.minus(base)
        size = file.n_bytes / 2**20
        points.append((size, difference.mean))
        axes.errorbar(
            size,
            difference.mean,
            yerr=[[difference.mean - difference.low], [difference.high - difference.mean]],
            fmt="o",
            capsize=3,
            color=color,
            label=f"{noise} the noise of F16",
            zorder=3,
        )
        _name(axes, file.kind, size, difference.mean)
    _draw_front(axes, points)
    axes.set_xlabel("size of the file, MiB")
    axes.set_ylabel("NLL above F16, nats per code")
    axes.margins(x=0.2)  # room for the names
    _legend(figure, axes)
    return figure


def _name(axes: Any, name: str, x: float, y: float) -> None:  # noqa: ANN401 - matplotlib's own
    """Right above a point, where no smaller and no better one lies."""
    axes.annotate(name, (x, y), xytext=(6, 3), textcoords="offset points", fontsize=9)


def _draw_front(axes: Any, points: Iterable[tuple[float, float]]) -> None:  # noqa: ANN401
    axes.step(
        *zip(*pareto_front(points), strict=True),
        where="post",
        color=_ORANGE,
        linewidth=1,
        linestyle="--",
        zorder=2,
        label="no file is both smaller and better",
    )


def plot_size(rows: Sequence[Evaluated]) -> Figure:
    figure, axes = _figure(4.4)
    points: list[tuple[float, float]] = []
    for row in rows:
        assert row.kl is not None  # noqa: S101 - the caller chose such files
        color, label = _BLUE, "quantized"
        if row.is_baseline:
            color, label = _GREY, "baseline"
        elif row.failures:
            color, label = _RED, "wrong, or beyond a limit"
        # A divergence of nothing has no place on a logarithmic axis.
        size, divergence = row.n_bytes / 2**20, max(row.kl, 1e-12)
        points.append((size, divergence))
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


def plot_heads(rows: Sequence[Evaluated]) -> Figure:
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


def plot_speed(rows: Sequence[Evaluated]) -> Figure:
    """Milliseconds of an AR step and of a NAR pass, a bar a file."""
    figure, both = _figure(0.9 + 0.42 * len(rows), 2)
    names = [row.kind for row in rows]
    colors = [_GREY if row.is_baseline else _BLUE for row in rows]
    for axes, title, key in zip(
        both, ("one AR step", "one NAR pass"), ("ar_step", "nar_pass"), strict=True
    ):
        values = [getattr(row.measured.speed, key) for row in rows if row.measured]
        bars = axes.barh(names, values, color=colors, zorder=3)
        labels = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values]
        axes.bar_label(bars, labels, padding=3, fontsize=9)
        axes.set_xlabel("milliseconds, median")
        axes.set_title(title, fontsize=11)
        axes.set_xlim(0, max(values) * 1.3)
        axes.grid(visible=False, axis="y")
    axes.invert_yaxis()  # both have the same
    return figure


def _figure(height: float, n: int = 1) -> tuple[Figure, Any]:
    """A figure of `n` axes side by side."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        return figure, figure.subplots(1, n, sharey=True)


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


def svg_of(figure: Figure) -> Markup:
    """Inline SVG, the same bytes for the same figure."""
    import matplotlib as mpl
    from markupsafe import Markup

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "valle-convert", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = re.sub(r"<\?xml.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)
    return Markup(svg)  # noqa: S704 - matplotlib escapes the words in it
