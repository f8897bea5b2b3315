"""The tables of an evaluation's report: columns, their meaning, and the files as rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from valle_convert.listening.listen import MEASURES, NLL, RETRIEVAL, WORDS, Measure
from valle_convert.quantize.advice import nearness
from valle_convert.quantize.listening import differences_of, means_of, places_of
from valle_convert.quantize.quality import ALL, Measured, Quality
from valle_convert.quantize.report import EvaluationReport, FileReport

#: A header, and rows of cells.
Table = tuple[list[str], list[list[str]]]
Cell = Callable[[EvaluationReport, FileReport], str]

WRONG, BEYOND = "WRONG", "BEYOND LIMITS"


def _verdict(_report: EvaluationReport, row: FileReport) -> str:
    if row.is_baseline:
        return "baseline"
    if row.is_wrong:
        return WRONG
    if row.failures:
        return BEYOND
    if row.open_questions:
        return "not measured"
    words = ["right"] if row.verified else []
    words += ["within limits"] if row.limits else []
    return ", ".join(words) or "not judged"


def _distance(_report: EvaluationReport, row: FileReport) -> str:
    return "" if row.kl is None or row.is_baseline else nearness(row.kl)


def _of_baseline(report: EvaluationReport, row: FileReport) -> str:
    return f"{row.n_bytes / report.baseline.n_bytes:.1%}" if report.baseline else ""


def _measured(show: Callable[[Measured], str]) -> Cell:
    return lambda _report, row: show(row.measured) if row.measured else ""


def _total(show: Callable[[Quality], str]) -> Cell:
    return _measured(lambda measured: show(measured.quality[ALL]))


def _heard(measure: Measure) -> Cell:
    def cell(report: EvaluationReport, row: FileReport) -> str:
        listened = row.listened
        if row.is_baseline and report.listening is not None:
            listened = report.listening.baseline
        tally = listened.total(measure) if listened else None
        if tally is None:
            return ""
        return f"{tally.mean:.3f}" if measure.unit else f"{tally.mean:.1%}"

    return cell


#: By importance: name, meaning, cell. A narrow terminal shows the first ones.
COLUMNS: tuple[tuple[str, str, Cell], ...] = (
    ("type", "of the file, as llama-quantize spells it", lambda _report, row: row.kind),
    (
        "verdict",
        (
            "right: the file holds its checkpoint's weights, and llama.cpp computes what they mean; "
            "within limits: it loses no more than the user allows. Neither says how much that is"
        ),
        _verdict,
    ),
    ("size, MiB", "of the file", lambda _report, row: f"{row.n_bytes / 2**20:.2f}"),
    (
        "distance",
        (
            "from the reference, by the mean KL: very close up to 0.001, close up to 0.01, changed up "
            "to 0.1, far above"
        ),
        _distance,
    ),
    (
        "KL mean",
        (
            "how far the predicted distributions are from the reference's: Kullback-Leibler "
            "divergence, mean over all predictions, in nats; 0 is the same"
        ),
        _total(lambda one: f"{one.kl_mean:.2e}"),
    ),
    (
        "top-1",
        "agreement: predictions whose most likely code is the reference's",
        _total(lambda one: f"{one.best_code:.2%}"),
    ),
    *((one.title, one.meaning, _heard(one)) for one in (NLL, RETRIEVAL, WORDS)),
    (
        "bits/weight",
        "size of the weights over their number",
        lambda _report, row: f"{row.bits_per_weight:.3f}",
    ),
    (
        "AR step, ms",
        "median time of one code of level 0, on this machine",
        _measured(lambda one: f"{one.speed.ar_step:.2f}"),
    ),
    (
        "NAR pass, ms",
        "median time of one pass over a level above",
        _measured(lambda one: f"{one.speed.nar_pass:.1f}"),
    ),
    (
        "AR equal",
        "codes of level 0 that stay the same in greedy decoding",
        _measured(lambda one: f"{one.greedy.ar_equal:.1%}"),
    ),
    (
        "NAR equal",
        "codes of the levels above that stay the same, given the reference's level 0",
        _measured(lambda one: f"{one.greedy.nar_equal:.1%}"),
    ),
    ("of F16", "size over that of the first row", _of_baseline),
    (
        "NMSE",
        "squared error of the logits over the squared logits of the reference; 0 is the same",
        _total(lambda one: f"{one.nmse:.2e}"),
    ),
    (
        "KL p99",
        "divergence that 99 % of the predictions are below",
        _total(lambda one: f"{one.kl_p99:.2e}"),
    ),
    ("KL max", "divergence of the worst prediction", _total(lambda one: f"{one.kl_max:.2e}")),
)
#: These first columns decide which file to take, and these always fit a terminal.
_N_ANSWER, _N_LEAST = 6, 3


def summary(report: EvaluationReport) -> Table:
    """Every column that has something in it."""
    shown = [one for one in COLUMNS if any(one[2](report, row) for row in report.rows)]
    return [name for name, _, _ in shown], [
        [cell(report, row) for _, _, cell in shown] for row in report.rows
    ]


def fitting(report: EvaluationReport, width: int) -> Table:
    """The summary's first columns, as many as fit a terminal."""
    header, rows = summary(report)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    n = len(header)
    while n > _N_LEAST and sum(widths[:n]) + 2 * (n - 1) > width:
        n -= 1
    return header[:n], [row[:n] for row in rows]


def answer(report: EvaluationReport) -> Table:
    """The columns that decide which file to take."""
    header, rows = summary(report)
    n = sum(name in header for name, _, _ in COLUMNS[:_N_ANSWER])
    return header[:n], [row[:n] for row in rows]


def details(report: EvaluationReport) -> Table:
    """The other columns of the summary."""
    (header, rows), n = summary(report), len(answer(report)[0])
    return header[:1] + header[n:], [row[:1] + row[n:] for row in rows]


def legend(report: EvaluationReport) -> list[str]:
    """The meaning of each column, a line each."""
    header, _ = summary(report)
    return [f"{name}: {meaning}" for name, meaning, _ in COLUMNS if name in header]


def by_head(report: EvaluationReport) -> Iterator[tuple[str, Table]]:
    """Divergence and agreement of each measured file, a column a head."""
    qualities = [(file.kind, file.measured.quality) for file in report.files if file.measured]
    if not qualities:
        return
    heads = [*(head for head in qualities[0][1] if head != ALL), ALL]
    shows: dict[str, Callable[[Quality], str]] = {
        "KL mean by head": lambda one: f"{one.kl_mean:.2e}",
        "Top-1 agreement by head": lambda one: f"{one.best_code:.2%}",
    }
    for title, show in shows.items():
        rows = [
            [kind, *(show(quality[head]) if head in quality else "" for head in heads)]
            for kind, quality in qualities
        ]
        yield title, (["type", *heads], rows)


def heard(report: EvaluationReport) -> Iterator[tuple[str, Table]]:
    """What --listen measured."""
    listening = report.listening
    if listening is None:
        return
    files = [
        ("F16", listening.baseline),
        (f"F16 again ({listening.repeat_how})", listening.repeat),
    ]
    files += [(file.kind, file.listened) for file in report.files if file.listened]
    recordings = listening.recordings
    everything = [("recordings", recordings), *files] if recordings is not None else files
    yield "What is said", means_of(everything)
    yield "What is said: difference to F16", differences_of(everything, listening.baseline)
    for measure in MEASURES.values():
        if len(listening.baseline.places(measure)) > 2:
            place = "head" if measure is NLL else "way of speaking"
            yield f"{measure.title} by {place}", places_of(measure, files)


def heard_legend(report: EvaluationReport) -> Iterator[str]:
    """What the tables of `heard` mean, a line each."""
    listening = report.listening
    if listening is None:
        return
    for measure in MEASURES.values():
        if listening.baseline.total(measure):
            better = "high" if measure.is_better_high else "low"
            yield f"{measure.title}: {measure.meaning}; {better} is better"
    yield (
        "means, with 95 % intervals by bootstrap over the sentences; for the difference to F16 "
        "the same sentences are drawn together. «F16 again» is the noise floor: only seed and "
        "threads differ"
    )
    yield f"recordings: {listening.references}; codec: {listening.codec}"
    if listening.recogniser:
        yield f"recogniser: {listening.recogniser}"
