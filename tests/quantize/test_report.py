"""What a run's report and its page recommend and say, and nothing without a reason."""

import io
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from msgspec import structs
from playwright.sync_api import Browser
from quantize.pages import WIDTHS, cut
from quantize.reports import (
    TYPES,
    file_of,
    make_report,
    measured,
    speech,
    verified,
)

from valle_convert.quantize.forms import to_html
from valle_convert.quantize.limits import Gates
from valle_convert.quantize.measurements import Evaluated
from valle_convert.quantize.plots import plot_heads, plot_likelihood, plot_size
from valle_convert.quantize.report import MIN_TEXTS, NEAR_KL, EvaluationReport, advise, judged
from valle_convert.quantize.tables import answer
from valle_convert.strict_json import to_json_text
from valle_convert.wording import plural

FEW = ("Q8_0", "Q2_K")


def with_first(report: EvaluationReport, **changes: Any) -> EvaluationReport:
    """The report with changes in its first file."""
    first, *others = report.files
    return replace(report, files=(structs.replace(first, **changes), *others))


@st.composite
def files(draw: st.DrawFn) -> Evaluated:
    """A file that may be unmeasured, beyond a limit, or heard to differ from F16."""
    kl = draw(st.none() | st.floats(0, 10) | st.just(float("nan")))
    found = None if kl is None else measured(kl, ["ar"], draw(st.floats(0, 1)))
    return structs.replace(
        file_of(draw(st.sampled_from(list(TYPES))), found),
        n_bytes=draw(st.integers(1, 10**12)),
        failures=draw(st.sampled_from([(), ("KL mean 1",)])),
        speech=draw(st.sampled_from([None, speech(7, 0.0), speech(20, 0.0), speech(20, 0.1)])),
    )


@given(st.lists(files(), max_size=6), st.integers(0, 20))
def test_what_is_recommended_passes_is_near_and_is_the_smallest(
    given: list[Evaluated], n_texts: int
) -> None:
    compared = structs.replace(make_report(FEW).compared, different_texts=n_texts)
    given = [structs.replace(one, compared=compared) for one in given]
    advice = advise(given)
    fit = [
        one
        for one in given
        if not (one.failures or (one.speech and one.speech.beyond_noise))
        if one.kl is not None and one.kl <= NEAR_KL
    ]
    n_texts = min([n_texts, *(one.speech.listening.n_texts for one in given if one.speech)])
    if n_texts < MIN_TEXTS or not fit:
        assert advice.take is None
        assert advice.sentence.startswith("No file is recommended: ")
        is_measured = any(one.kl is not None and one.kl >= 0 for one in given)
        said = f"over {plural(n_texts, 'different text')}, and fewer" in advice.sentence
        assert said == (is_measured and n_texts < MIN_TEXTS)
    else:
        assert advice.take in fit
        assert advice.take.n_bytes == min(one.n_bytes for one in fit)
        assert advice.sentence.startswith(f"Take {advice.take.kind} (")
    assert advice.sentence.endswith(".")
    assert "None" not in advice.sentence


def test_right_and_near_are_told_apart() -> None:
    report = make_report(("Q8_0", "Q2_K"))
    verdict = report.verdict()
    assert verdict.startswith("PASSED: 2 files; 2 verified against the checkpoint")
    assert "Q8_0 very close, Q2_K far." in verdict
    unknown = with_first(report, measured=measured(float("nan"), ["ar"]))
    assert "Q8_0 far, Q2_K far." in unknown.verdict()
    header, rows = answer(report)
    by_type = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert by_type["Q2_K"]["verdict"] == "right"
    assert by_type["Q2_K"]["distance"] == "far"
    wrong = verified("model-Q8_0.gguf", right=False)
    gates = Gates({"max_kl": {"Q2_K": 0.1}})
    failed = with_first(report, verified=wrong)
    failed = replace(failed, files=tuple(judged(one, gates) for one in failed.files))
    # Verdicts of files are clauses of the run's, with one full stop.
    assert failed.verdict() == (
        "FAILED: model-Q8_0.gguf: FAILED: 1 check of model-Q8_0.gguf; "
        "model-Q2_K.gguf: KL mean 4.00e-01, allowed 1.00e-01 (worst in nar.2: 6.40e-01)."
    )
    _, rows = answer(failed)
    assert [row[1] for row in rows] == ["baseline", "WRONG", "BEYOND LIMITS"]


# The HTML page


REPORTS = {
    "answer": make_report(heard=True, levels=8, layers=12),
    "no answer": make_report(FEW, n_texts=2),
    "many types": make_report(tuple(TYPES) * 4, levels=8),
}


@cache
def page_of(name: str) -> str:
    return to_html(REPORTS[name])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", REPORTS)
def test_nothing_is_cut(browser: Browser, tmp_path: Path, name: str, width: int) -> None:
    path = tmp_path / "report.html"
    path.write_text(page_of(name), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(path.as_uri())
    assert cut(page) == []
    page.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_first_screen_is_the_answer(browser: Browser, tmp_path: Path, width: int) -> None:
    path = tmp_path / "report.html"
    path.write_text(page_of("answer"), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(path.as_uri())
    answer = page.locator(".answer")
    assert answer.locator("h2").inner_text() == "Take Q4_K_M"
    assert answer.locator("dd").all_inner_texts() == ["122.5 MiB", "0.006", "97.0%"]
    sounds = answer.locator("audio")
    assert sounds.count() == 2
    box = sounds.last.bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= 900
    page.close()


def test_green_is_for_what_is_right_and_near() -> None:
    assert '<p class="verdict">PASSED' in to_html(make_report(("Q8_0", "Q4_K_M")))
    page = to_html(make_report(FEW))
    assert '<p class="verdict warn">PASSED' in page
    assert 'class="bad" data-name="distance">far<' in page
    failed = with_first(make_report(("Q8_0",)), failures=("KL mean 1, allowed 0.1",))
    assert '<p class="verdict bad">FAILED' in to_html(failed)


def plots() -> dict[str, Figure]:
    report = make_report(heard=True)
    assert report.listening is not None
    failed = with_first(report, failures=("KL mean 1, allowed 0.1",))
    return {
        "likelihood": plot_likelihood(report, report.listening),
        "size": plot_size(failed.rows),
        "heads": plot_heads(report.rows),
    }


@pytest.mark.parametrize("name", plots())
def test_a_legend_lies_beside_the_plot_and_shows_the_colours(name: str) -> None:
    figure = plots()[name]
    figure.savefig(io.BytesIO(), format="png")  # lays everything out
    (axes,) = figure.axes
    (legend,) = figure.legends
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    said = [text.get_text() for text in legend.get_texts()]
    assert len(said) == len(set(said))
    everything = " ".join([*said, axes.get_title()])
    assert not {"grey", "red", "blue"} & set(everything.replace(":", " ").split())
    if name == "size":
        assert {"baseline", "quantized", "wrong, or beyond a limit"} <= set(said)
    if name == "likelihood":
        assert {"within the noise of F16", "beyond the noise of F16"} <= set(said)


def test_words_of_a_report_are_no_markup() -> None:
    bad = "<script>alert(1)</script>"
    report = make_report(FEW)
    compared = structs.replace(report.compared, source=bad, reference=bad)
    report = with_first(replace(report, command=bad, notes=(bad,)), compared=compared, kind=bad)
    assert "<script" not in to_html(report)


def test_every_file_of_one_type_has_its_players() -> None:
    report = make_report(FEW, heard=True)
    pages = [to_html(replace(report, files=report.files[:1] * n)) for n in (1, 2)]
    once, twice = (page.count("<figcaption>Q8_0, ") - 1 for page in pages)  # one is in the answer
    assert twice == 2 * once > 0


def test_the_json_form_has_what_was_recommended() -> None:
    for report in (make_report(heard=True), make_report(n_texts=2)):
        value = json.loads(to_json_text(report.to_json()))
        best = report.advice().take
        assert value["recommended"] == (best.kind if best else None)
        assert {one["type"] for one in value["files"]} == set(TYPES)


def test_a_limit_on_what_was_not_measured_is_neither_kept_nor_exceeded() -> None:
    report = make_report(FEW)
    unmeasured, exceeded = {"max_nll": {"": 1.0}}, {"max_kl": {"": 0.0}}
    for limits, code in ((unmeasured, 3), (unmeasured | exceeded, 1)):
        run = replace(report, files=tuple(judged(one, Gates(limits)) for one in report.files))
        assert (run.passed, run.exit_code) == (False, code)
        assert run.verdict().startswith({1: "FAILED: ", 3: "NOT MEASURED: "}[code])
