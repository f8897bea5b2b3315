"""The HTML page of a run: the answer first, nothing cut, no word that is not true."""

import io
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from msgspec import structs
from playwright.sync_api import Browser
from quantize.pages import WIDTHS, cut
from quantize.reports import TYPES, make_report

from valle_convert.quantize.forms import to_html
from valle_convert.quantize.plots import plot_heads, plot_likelihood, plot_size

FEW = ("Q8_0", "Q2_K")


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
    report = make_report(("Q8_0",))
    failed = replace(report.files[0], failures=("KL mean 1, allowed 0.1",))
    assert '<p class="verdict bad">FAILED' in to_html(replace(report, files=(failed,)))


def plots() -> dict[str, Figure]:
    report = make_report(heard=True)
    assert report.listening is not None
    rows = [report.baseline, *report.files]
    failed = replace(report.files[0], failures=("KL mean 1, allowed 0.1",))
    return {
        "likelihood": plot_likelihood(report, report.listening),
        "size": plot_size([report.baseline, failed, *report.files[1:]]),
        "heads": plot_heads(rows),
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
    report = replace(report, compared=compared, command=bad, notes=(bad,))
    assert "<script" not in to_html(report)


def test_every_file_of_one_type_has_its_players() -> None:
    report = make_report(FEW, heard=True)
    pages = [to_html(replace(report, files=report.files[:1] * n)) for n in (1, 2)]
    once, twice = (page.count("<figcaption>Q8_0, ") - 1 for page in pages)  # one is in the answer
    assert twice == 2 * once > 0
