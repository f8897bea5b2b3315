"""`evaluate --listen` on the trained miniature: real speech, measured, judged and reported."""

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser
from quantize.pages import WIDTHS, cut
from support import PROJECT, Cli, error_of, run_python

from miniature.evaluate import held_out, write_data
from valle_convert.listening.listen import (
    DISTANCE,
    NLL,
    PHONEMES,
    RETRIEVAL,
    WORDS,
    Listened,
    ListeningTest,
)
from valle_convert.listening.measures import Tally
from valle_convert.quantize.evaluate import FileSelection, evaluate
from valle_convert.quantize.forms import FORMS
from valle_convert.quantize.limits import Gates
from valle_convert.quantize.listening import Listening, pareto_front
from valle_convert.quantize.options import ListenOptions, MakeOptions, MeasureOptions
from valle_convert.quantize.run import quantize
from valle_convert.quantize.types import parse_types

MINIATURE = PROJECT / "miniature" / "miniature.sft"
CODEC = ("--codec", PROJECT / "miniature" / "codec.safetensors")
QUICK = ("--checkpoint", MINIATURE, "--threads", "1")
#: Hears the text of a file beside it, whatever is said: what it makes of speech is not tested here.
DEAF = "print('the old man')"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held-out")
    write_data(held_out(5, 3), folder)
    return folder


@pytest.fixture(scope="module")
def f16(converted: Callable[[Path, str], Path]) -> Path:
    return converted(MINIATURE, "f16")


@pytest.fixture(scope="module")
def made(f16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "out"
    quantize(f16, folder, MakeOptions(parse_types("Q8_0,Q2_K"), imatrix="none", threads=1))
    return folder


@pytest.fixture(scope="module")
def heard(made: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the reports of a run in which two types are beyond their limits."""
    folder = tmp_path_factory.mktemp("heard")
    arguments = [
        *("evaluate", made, "--listen", "--data", data),
        *("--asr", f'{sys.executable} -c "{DEAF}"', "--max-nll", "Q8_0=0.05,Q2_K=0.001"),
        *("--max-wer", "Q8_0=0.1", "--utterances", 2, *CODEC, *QUICK),
        *(word for suffix in FORMS for word in ("--report", folder / f"report{suffix}")),
    ]
    done = run_python("-m", "miniature", *arguments)
    assert done.returncode == 1, done.stderr
    assert "FAILED" in done.stdout
    return folder


def test_what_files_say_is_measured_judged_and_reported(heard: Path) -> None:
    report = json.loads((heard / "report.json").read_text())
    q8, q2 = report["files"]
    # Which bits are gone shows in the likelihood of two sentences already.
    assert 0 <= abs(q8["listened"]["nll"]["all"]["difference"]["mean"]) < 0.02
    assert q2["listened"]["nll"]["all"]["difference"]["mean"] > 0.02
    heads = {"ar", "nar.1", "nar.2", "nar.3", "mask", "len", "stt", "all"}
    assert set(q2["listened"]["nll"]) == heads
    ways = {"ar greedy", "ar sampled", "nar-len greedy", "nar-len sampled", "all"}
    for measure in ("retrieval", "mel_cepstral_distance", "duration_error", "word_error_rate"):
        assert set(q2["listened"][measure]) == ways
    # The noise floor: nothing is drawn where the truth is given.
    repeat = report["listening"]["repeat"]["nll"]["all"]["difference"]
    assert abs(repeat["mean"]) < 1e-3
    assert report["listening"]["recordings"]["word_error_rate"]["all"]["mean"] > 0.5
    # Every limit that was given is judged, and named.
    (worse,) = q2["failures"]
    assert worse.startswith("NLL +")
    assert [one.split()[0] for one in q8["failures"]] == ["word"]
    assert "valle-convert evaluate" in report["command"]
    assert {one["type"] for one in q2["tensors"]} == {"Q2_K", "Q3_K", "Q6_K"}
    noise = {one["name"]: one["snr_db"] for one in q2["tensors"]}
    assert noise["blk.0.ffn_up.weight"] < noise["token_embd.weight"]
    page = (heard / "report.md").read_text()
    for title in ("## What is said", "## NLL by head", "## retrieval by way of speaking"):
        assert title in page


def test_what_was_heard_is_kept_and_nobody_listens_twice(
    cli: Cli, heard: Path, made: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listen(*_given: object) -> None:
        raise AssertionError("it was heard before")

    monkeypatch.setattr(ListeningTest, "listen", listen)
    asr = f'{sys.executable} -c "{DEAF}"'
    again = ("evaluate", made, "--listen", "--data", data, "--utterances", 2, "--asr", asr)
    result = cli(*again, *CODEC, *QUICK, "--json")
    assert result.code == 0, result.err
    before = json.loads((heard / "report.json").read_text())
    for old, new in zip(before["files"], json.loads(result.out)["files"], strict=True):
        assert new["listened"] == old["listened"]


def test_sentences_without_recordings_are_compared_with_what_f16_says(
    f16: Path, made: Path, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("The old man.\nwe saw a boat\n", encoding="utf-8")
    voice = PROJECT / "miniature" / "voice-plain.flac"
    listening = ListenOptions(texts, voice, codec=str(CODEC[1]))
    measuring = MeasureOptions(n_utterances=2, threads=1)
    given = FileSelection((f16, made / "miniature-Q8_0.gguf"), keep=False)
    report = evaluate(given, Gates(), measuring, listening).to_json()
    assert report["listening"]["sentences"][0] == "The old man."
    assert "speech of texts.txt" in report["listening"]["references"]
    (file,) = report["files"]
    ways = {f"{mode} {how}" for mode in ("ar", "nar-len") for how in ("greedy", "sampled")}
    assert set(file["listened"]["retrieval"]) == {*ways, "all"}
    # What the network said is likelier to it than chance; the AR head sees what the other said.
    assert file["listened"]["nll"]["ar"]["mean"] < math.log(256)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--listen needs something to say"),
        (["--data", "DATA", "--asr", "no-such-recogniser"], "no-such-recogniser"),
        (["--data", "DATA", "--asr", "a 'b"], "which is not a command"),
        (["--data", "DATA", "--utterances", "1"], "expected two or more"),
        (["--sentences", "ONE"], "has 1 sentence, expected two or more"),
        (["--sentences", "LATIN"], "is not UTF-8"),
        (["--sentences", "absent.txt"], "absent.txt"),
        (["--data", "WORDLESS", "--asr", "PYTHON"], "lacks the words"),
        (["--data", "DATA"], "pass it with --codec"),
    ],
)
def test_what_cannot_be_listened_to_is_refused_before_anything_is_measured(
    cli: Cli, f16: Path, data: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    wordless = tmp_path / "wordless"
    wordless.mkdir()
    for path in data.glob("*.npz"):
        with np.load(path) as arrays:
            kept = {name: arrays[name] for name in arrays.files if name != "text"}
        np.savez(wordless / path.name, **kept)
    (tmp_path / "one.txt").write_text("Only one.\n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n\nand one more\n")
    names = {"DATA": data, "ONE": tmp_path / "one.txt", "LATIN": tmp_path / "latin.txt"}
    names |= {"WORDLESS": wordless, "PYTHON": Path(sys.executable)}
    given = [str(names.get(one, one)) for one in arguments]
    codec = () if "--codec" in words else CODEC
    result = cli("evaluate", f16, "--listen", *given, *codec, *QUICK)
    code = 3 if "no-such" in words else 2
    assert words in error_of(result, code)
    assert not f16.with_suffix(".measurements.json").exists()


#: What a page is asked in the browser, once its sound has loaded.
LOADED = "() => [...document.querySelectorAll('audio')].every(one => one.readyState >= 1)"
SOUNDS = "() => [...document.querySelectorAll('audio')].map(one => [one.duration, !!one.error])"
PLAYED = "async () => { const one = document.querySelector('audio'); await one.play(); }"
PLAYING = "() => document.querySelector('audio').currentTime > 0.1"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_whole_in_a_browser(browser: Browser, heard: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    said: list[str] = []
    fetched: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: fetched.append(request.url))
    address = (heard / "report.html").as_uri()
    page.goto(address)
    page.wait_for_function(LOADED)
    # Two recordings; two sentences in four ways by F16 and two types.
    sounds = page.evaluate(SOUNDS)
    assert len(sounds) == 2 + 2 * 4 * 3
    assert all(seconds > 0.1 and not failed for seconds, failed in sounds)
    page.evaluate(PLAYED)
    page.wait_for_function(PLAYING)
    assert cut(page) == []
    for text in ("FAILED", "No file is recommended", "Matrices", "valle-convert evaluate"):
        assert page.get_by_text(text).first.is_visible()
    assert page.locator("svg").count() == 4
    assert said == []
    assert [one for one in fetched if not one.startswith("data:")] == [address]
    page.close()


def said(nll: list[float], right: list[float], phonemes: Sequence[float] | None = None) -> Listened:
    values = {
        NLL: nll,
        PHONEMES: phonemes or [0.44] * len(nll),
        RETRIEVAL: right,
        DISTANCE: [6.0] * len(nll),
        WORDS: [0.1] * len(nll),
    }
    return Listened({one.name: {"all": Tally.each(found)} for one, found in values.items()})


def test_what_is_beyond_the_noise_of_f16_is_named() -> None:
    nll = [3.0, 3.2, 2.8, 3.1, 2.9, 3.0, 3.3, 2.7]
    base = said(nll, [1.0] * 8)
    listening = Listening(base, base, "", None, None, "", "", ("a",) * 8)
    error = base.tallies[NLL.name]["all"].estimate().error
    fine = said([one + 0.5 * error for one in nll], [1.0] * 8)
    less_likely = said([one + 1.5 * error for one in nll], [1.0] * 8)
    misheard = said(nll, [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    slip = said(nll, [0.0, *[1.0] * 7])
    assert not listening.beyond_noise(fine)
    assert not listening.beyond_noise(slip)  # one of eight is chance
    assert [one.split()[0] for one in listening.beyond_noise(less_likely)] == ["NLL"]
    assert [one.split()[0] for one in listening.beyond_noise(misheard)] == ["retrieval"]
    assert listening.beyond_noise(said([math.nan] * 8, [1.0] * 8))  # what was not measured
    misread = said(nll, [1.0] * 8, phonemes=[0.67] * 8)
    assert [one.split()[0] for one in listening.beyond_noise(misread)] == ["PER"]


def test_the_front_has_what_none_is_both_smaller_and_better_than() -> None:
    points = [(10, 0.5), (20, 0.6), (30, 0.1), (30, 0.2), (40, 0.1)]
    assert list(pareto_front(points)) == [(10, 0.5), (30, 0.1)]
