"""Utterances: read, seeded, and made of recordings by `valle-convert utterances`."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support import ONE_THREAD, Cli, error_of, golden_checkpoint, run_program

from valle_convert.audio import EncodecCodec, SavedCodes, read_audio, write_codes
from valle_convert.audio.utterances import Recorded, read_list
from valle_convert.checkpoint import read_checkpoint
from valle_convert.errors import InputError
from valle_convert.families.bundle import open_bundle
from valle_convert.families.v5 import FAMILY
from valle_convert.families.v5.facts import describe
from valle_convert.families.v5.recordings import utterance_names
from valle_convert.families.v5.trials import cases, read_utterance
from valle_convert.model.spec import Model
from valle_convert.quantize.examples import Examples


@pytest.fixture(scope="module")
def model() -> Model:
    return describe(read_checkpoint(golden_checkpoint("ar-nar-len"))).model


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write an utterance that is right but for what is given; None leaves an array out."""

    def write(name: str = "a.npz", **arrays: object) -> Path:
        values: dict[str, object] = {
            "phonemes": np.array([1, 30, 31, 2]),
            "response": np.full((12, 8), 63),
            "prompt": np.zeros((5, 8), np.int32),
            "language": np.array(2),
        }
        values |= arrays
        path = tmp_path / name
        np.savez(path, **{k: v for k, v in values.items() if v is not None})  # type: ignore[arg-type]
        return path

    return write


def test_an_utterance_is_read_as_it_was_written(model: Model, write: Write) -> None:
    utterance = read_utterance(write(), model, seed=(0,))
    assert utterance.condition.phonemes.tolist() == [1, 30, 31, 2]
    assert utterance.condition.language == 2
    assert utterance.condition.prompt is not None
    assert utterance.condition.prompt.shape == (5, 8)
    assert (utterance.response == 63).all()
    assert utterance.digits.tolist() == [0, 1, 2]  # twelve frames
    assert set(utterance.masked) <= {63, model.config.special_code}


def test_prompt_and_language_may_be_left_out_and_the_order_of_bytes_does_not_matter(
    model: Model, write: Write
) -> None:
    codes = np.arange(96).reshape(12, 8) % 64
    given = [codes, np.asfortranarray(codes)]
    plain, turned = (
        read_utterance(write(response=one, prompt=None, language=None), model, seed=(0,))
        for one in given
    )
    np.testing.assert_array_equal(plain.response, turned.response)
    assert plain.condition.prompt is None
    assert plain.condition.language == 0
    assert len(list(cases(model, plain))) > 10


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"phonemes": None}, "has no 'phonemes'"),
        ({"response": None}, "has no 'response'"),
        ({"response": np.full((12, 7), 1)}, r"\[12, 7\], expected integers \[frames, 8\]"),
        ({"response": np.full((12, 8), 64)}, "has 64, expected 0 to 63"),
        ({"response": np.full((12, 8), -1)}, "has -1"),
        ({"response": np.zeros((0, 8), int)}, r"int64 \[0, 8\]"),
        ({"phonemes": np.array([1.0, 2.0])}, "expected integers"),
        ({"phonemes": np.array([[1, 2]])}, r"int64 \[1, 2\]"),
        ({"phonemes": np.array([256])}, "has 256"),
        ({"language": np.array(6)}, "has 6, expected 0 to 5"),
        ({"language": np.array([1, 2])}, r"language is int64 \[2\], expected one integer"),
        ({"prompt": np.full((5, 8), 99)}, "prompt has 99"),
        ({"phonemes": np.ones(22_750, int)}, "more than the model's context"),
        ({"phonemes": np.ones(300_000, int)}, "unpack to more than"),
        ({"phonemes": np.array([None, 1], object)}, "Object arrays cannot be loaded"),
    ],
)
def test_what_is_not_of_the_format_or_not_of_the_model_is_refused(
    model: Model, write: Write, arrays: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_utterance(write(**arrays), model, seed=(0,))


def test_given_utterances_come_in_the_order_of_their_names_and_their_bytes_count(
    model: Model, write: Write, tmp_path: Path
) -> None:
    write("b.npz", phonemes=np.array([1, 9, 2]))
    write("a.npz")
    write("c.npz", response=np.full((4, 8), 1))
    first = Examples.choose(FAMILY, model, tmp_path, None)
    assert [len(one.condition.phonemes) for one in first] == [4, 3, 4]
    assert (first.count, first.n_texts) == (3, 2)  # two recordings of one text are one text
    write("b.npz", phonemes=np.array([1, 8, 2]))
    assert Examples.choose(FAMILY, model, tmp_path, None).digest != first.digest


# Made of recordings

CODES = 64  # a codebook, in the golden checkpoints
WORDS = ["Hello world, this is a test.", "Guten Morgen, wie geht es dir heute?"]


@pytest.fixture(scope="session")
def recordings(voice: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two recordings, of another rate than the codec's, one in stereo."""
    path = tmp_path_factory.mktemp("recordings") / "two.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(1).standard_normal(12_000), 16_000)
    return [voice, path]


@pytest.fixture
def saved(tmp_path: Path, model: Model) -> Callable[..., Path]:
    """A file of 20 frames of codes, as `speak --save-codes` writes it."""

    def save(name: str = "codes.npz") -> Path:
        codes = np.random.default_rng(1).integers(0, CODES, (20, 8)).astype(np.int32)
        write_codes(tmp_path / name, SavedCodes(codes, model.config.codec, CODES))
        return tmp_path / name

    return save


def test_recordings_and_texts_become_utterances_that_quantize_takes(
    cli: Cli, gguf: Path, model: Model, codec: Path, recordings: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "data"
    texts = [word for text in WORDS for word in ("--text", text)]
    given = ["--model", gguf, "--codec", codec, "--voice", recordings[0]]
    result = cli("utterances", *recordings, out, *texts, *given, "--json")
    assert result.code == 0, result
    told = json.loads(result.out)["utterances"]
    assert [one["language"] for one in told] == ["en", "de"]
    assert told[0]["phonemes"].startswith("həlˈoʊ wˈɜːld")
    chosen = Examples.choose(FAMILY, model, out, None)
    assert [path.name for path in chosen.files] == ["0001-prompt.npz", "0002-two.npz"]
    encodec = EncodecCodec(codec)
    for utterance, path, one in zip(chosen, recordings, told, strict=True):
        codes = encodec.encode(read_audio(path, 24_000))
        np.testing.assert_array_equal(utterance.response, codes)
        assert utterance.condition.language == model.languages.index(one["language"])
        assert utterance.condition.prompt is not None
        assert utterance.condition.prompt.shape == (225, 8)  # three seconds
        result = cli("tokenize", gguf, one["phonemes"], "--json")
        ids = json.loads(result.out)["llama_cpp"]["ids"]
        assert utterance.condition.phonemes.tolist() == ids


def test_a_list_names_recordings_beside_it_and_codes_need_no_codec(
    cli: Cli, gguf: Path, model: Model, saved: Callable[..., Path], tmp_path: Path
) -> None:
    saved()
    line = "codes.npz\thəlˈoʊ\r\n\n".encode()
    (tmp_path / "list.tsv").write_bytes(b"\xef\xbb\xbf" + line)
    out = tmp_path / "data"
    given = ["--list", tmp_path / "list.tsv", "--model", gguf]
    result = cli("utterances", out, *given, "--phonemes", "--language", "fr-CA", "--json")
    assert result.code == 0, result
    (utterance,) = Examples.choose(FAMILY, model, out, None)
    assert utterance.response.shape == (20, 8)
    assert utterance.condition.language == model.languages.index("fr")
    assert utterance.condition.prompt is None
    again = cli("utterances", out, *given, "--phonemes")
    assert "--force" in error_of(again, 2)
    assert cli("utterances", out, *given, "--phonemes", "--force", "--json").code == 0


def test_one_bad_recording_of_several_leaves_nothing(
    cli: Cli, gguf: Path, codec: Path, recordings: list[Path], tmp_path: Path
) -> None:
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(24_000), 24_000)
    texts = ["--text", WORDS[0], "--text", WORDS[0]]
    given = ["--model", gguf, "--codec", codec]
    result = cli("utterances", recordings[0], silent, tmp_path / "data", *texts, *given)
    assert "no speech in" in error_of(result, 2)
    assert not (tmp_path / "data").exists()


def test_what_speak_saves_of_one_sentence_is_an_utterance(
    gguf: Path, model: Model, codec: Path, tmp_path: Path
) -> None:
    from valle_convert.speech.results import SpeakOptions

    bundle = open_bundle(gguf)
    with bundle.family.speaker(bundle, codec=EncodecCodec(codec), settings=ONE_THREAD) as speaker:
        options = SpeakOptions(mode="ar", language="de", max_seconds=0.2, seed=1)
        one = speaker.speak("Guten Morgen.", options=options)
        two = speaker.speak("Guten Morgen. Wie geht es?", options=options)
    write_codes(tmp_path / "one.npz", one.saved_codes)
    utterance = read_utterance(tmp_path / "one.npz", model, seed=(0,))
    np.testing.assert_array_equal(utterance.response, one.codes)
    assert utterance.condition.language == model.languages.index("de")
    assert utterance.condition.phonemes.tolist() == list(one.pieces[0].ids)
    assert len(one.pieces[0].ids) > 5
    write_codes(tmp_path / "two.npz", two.saved_codes)
    with pytest.raises(InputError, match=r"has codes but no phonemes.*two\.npz --text"):
        read_utterance(tmp_path / "two.npz", model, seed=(0,))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_list_is_read_in_the_encoding_that_its_mark_says(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "list.tsv"
    path.write_bytes("ü.wav\tGrüße.\nb.wav\tこんにちは。\n".encode(encoding))
    assert [(one.path.name, one.text) for one in read_list(path)] == [
        ("ü.wav", "Grüße."),
        ("b.wav", "こんにちは。"),
    ]


def test_names_that_are_not_utf_8_are_names(
    gguf: Path, model: Model, saved: Callable[..., Path], tmp_path: Path
) -> None:
    saved(os.fsdecode(b"\xff.npz"))
    (tmp_path / "list.tsv").write_bytes(b"\xff.npz\tHello.\n")
    out = tmp_path / os.fsdecode(b"\xfe")
    listed = ("--list", tmp_path / "list.tsv", "--model", gguf, "--json")
    done = run_program("utterances", out, *listed)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["utterances"]) == 1
    assert len(list(Examples.choose(FAMILY, model, out, None))) == 1


def test_names_of_utterances_keep_the_order_and_fit() -> None:
    recorded = [Recorded(Path("x" * 251 + ".wav"), ""), *[Recorded(Path("a.wav"), "")] * 10]
    names = utterance_names(recorded)
    assert names == sorted(names)
    assert len(set(names)) == 11
    assert max(len(name) for name in names) <= 255
