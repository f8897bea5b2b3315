"""The tables of an evaluation's report: columns, their meaning, and the files as rows."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from valle_convert.listening.listen import (
    EVERYWHERE,
    MEASURES,
    NLL,
    RETRIEVAL,
    WORDS,
    Listened,
    Measure,
)
from valle_convert.quantize.measurements import Evaluated
from valle_convert.quantize.quality import ALL
from valle_convert.quantize.report import EvaluationReport, nearness

Files = Sequence[tuple[str, Listened]]
#: A header, and rows of cells.
Table = tuple[list[str], list[list[str]]]
WRONG, BEYOND = "WRONG", "BEYOND LIMITS"
_HEARD = (NLL, RETRIEVAL, WORDS)
#: Name, key of `_values`, format, meaning.
Column = tuple[str, str, str, str]
#: By importance.
COLUMNS: tuple[Column, ...] = (
    ("type", "kind", "", "of the file, as llama-quantize spells it"),
    (
        "verdict",
        "verdict",
        "",
        "right: verified against its checkpoint; within limits: it loses no more than you allow",
    ),
    ("size, MiB", "mib", ".2f", "of the file"),
    (
        "distance",
        "distance",
        "",
        "by the mean KL: very close up to 0.001, close up to 0.01, changed up to 0.1, far above",
    ),
    (
        "KL mean",
        "kl_mean",
        ".2e",
        "Kullback-Leibler divergence of the predictions from the reference's, mean, in nats",
    ),
    ("top-1", "best_code", ".2%", "agreement of the most likely code with the reference's"),
    *((one.title, one.name, ".3f" if one.unit else ".1%", one.meaning) for one in _HEARD),
    ("bits/weight", "bits", ".3f", "size of the weights over their number"),
    ("AR step, ms", "ar_step", ".2f", "median time of one code of level 0, on this machine"),
    ("NAR pass, ms", "nar_pass", ".1f", "median time of one pass over a level above"),
    ("AR equal", "ar_equal", ".1%", "codes of level 0 that stay the same in greedy decoding"),
    ("NAR equal", "nar_equal", ".1%", "the same for higher levels, given the reference's level 0"),
    ("of F16", "of_baseline", ".1%", "size over that of the first row"),
    ("NMSE", "nmse", ".2e", "squared error of the logits over the reference's squared logits"),
    ("KL p99", "kl_p99", ".2e", "divergence that 99 % of the predictions are below"),
    ("KL max", "kl_max", ".2e", "divergence of the worst prediction"),
)
#: These first columns decide which file to take.
_N_ANSWER = 6


def _values(report: EvaluationReport, row: Evaluated) -> dict[str, str | float]:
    values: dict[str, str | float] = {
        "kind": row.kind,
        "verdict": _verdict(row),
        "mib": row.n_bytes / 2**20,
        "bits": row.bits_per_weight,
        "of_baseline": row.n_bytes / report.compared.baseline.n_bytes,
    }
    if row.measured is not None:
        measured = (row.measured.quality[ALL], row.measured.greedy, row.measured.speed)
        values |= {key: value for one in measured for key, value in asdict(one).items()}
    if row.kl is not None and not row.is_baseline:
        values["distance"] = nearness(row.kl)[0]
    listened = row.speech.listened if row.speech else None
    if row.is_baseline and report.listening is not None:
        listened = report.listening.baseline
    for measure in _HEARD:
        if listened is not None and (tally := listened.total(measure)):
            values[measure.name] = tally.mean
    return values


def _verdict(row: Evaluated) -> str:
    if row.is_baseline:
        return "baseline"
    if row.is_wrong:
        return WRONG
    if row.failures:
        return BEYOND
    if row.is_open:
        return "not measured"
    words = ["right"] if row.verified else []
    words += ["within limits"] if row.limits else []
    return ", ".join(words) or "not judged"


def summary(report: EvaluationReport, columns: Sequence[Column] = COLUMNS) -> Table:
    rows = [_values(report, row) for row in report.rows]
    shown = [(name, key, form) for name, key, form, _ in columns if any(key in row for row in rows)]
    return [name for name, _, _ in shown], [
        [format(row[key], form) if key in row else "" for _, key, form in shown] for row in rows
    ]


def answer(report: EvaluationReport) -> Table:
    """The columns that decide which file to take; they fit a terminal."""
    return summary(report, COLUMNS[:_N_ANSWER])


def details(report: EvaluationReport) -> Table:
    return summary(report, (COLUMNS[0], *COLUMNS[_N_ANSWER:]))


def legend(report: EvaluationReport) -> list[str]:
    header, _ = summary(report)
    return [f"{name}: {meaning}" for name, _, _, meaning in COLUMNS if name in header]


def by_head(report: EvaluationReport) -> Iterator[tuple[str, Table]]:
    """Divergence and agreement of each measured file, a column a head."""
    qualities = [(file.kind, file.measured.quality) for file in report.files if file.measured]
    if not qualities:
        return
    heads = [*(head for head in qualities[0][1] if head != ALL), ALL]
    shown = ("KL mean", "kl_mean", ".2e"), ("Top-1 agreement", "best_code", ".2%")
    for title, key, form in shown:
        rows = [
            [
                kind,
                *(format(getattr(one[head], key), form) if head in one else "" for head in heads),
            ]
            for kind, one in qualities
        ]
        yield f"{title} by head", (["type", *heads], rows)


def heard(report: EvaluationReport) -> Iterator[tuple[str, Table]]:
    listening = report.listening
    if listening is None:
        return
    files = [
        ("F16", listening.baseline),
        (f"F16 again ({listening.repeat_how})", listening.repeat),
    ]
    files += [(file.kind, file.speech.listened) for file in report.files if file.speech]
    recordings = listening.recordings
    everything = [("recordings", recordings), *files] if recordings is not None else files
    yield "What is said", means_of(everything)
    yield "What is said: difference to F16", means_of(everything, listening.baseline)
    for measure in MEASURES.values():
        places = listening.baseline.places(measure)
        if len(places) > 2:
            place = "head" if measure is NLL else "way of speaking"
            columns = [(one, measure, one) for one in places]
            yield f"{measure.title} by {place}", _spoken(files, columns)


def means_of(files: Files, base: Listened | None = None) -> Table:
    """Each measure over all places, or its difference from `base`."""
    columns = [
        (f"{one.title}, {one.unit}" if one.unit else one.title, one, EVERYWHERE)
        for one in MEASURES.values()
        if any(file.total(one) for _, file in files)
    ]
    return _spoken(files, columns, base)


def _spoken(
    files: Files,
    columns: Sequence[tuple[str, Measure, str]],
    base: Listened | None = None,
) -> Table:
    """A row a file, a column a measure at a place: `3.221 (3.115 to 3.331)`, or the difference."""

    def cell(file: Listened, measure: Measure, place: str) -> str:
        mine, its = file.total(measure, place), base.total(measure, place) if base else None
        if mine is None or (base is not None and its is None):
            return ""
        one, sign = (mine.minus(its), "+") if its else (mine.estimate(), "")
        return f"{one.mean:{sign}.3f} ({one.low:{sign}.3f} to {one.high:{sign}.3f})"

    rows = [
        [name, *(cell(file, measure, place) for _, measure, place in columns)]
        for name, file in files
        if file is not base
    ]
    return ["file", *(title for title, _, _ in columns)], rows


def heard_legend(report: EvaluationReport) -> Iterator[str]:
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
        yield f"recognizer: {listening.recogniser}"
