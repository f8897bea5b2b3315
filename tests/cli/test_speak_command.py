"""`valle-convert speak` and `transcribe`, from what people type to the files they get."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support import Cli, Convert, Result, error_of, run_program, run_without

from valle_convert.api import plan_conversion, write_gguf
from valle_convert.audio import read_codes
from valle_convert.cli.speak_report import stop_on_interrupt
from valle_convert.families.family import Choices

RATE = 24_000
FRAMES = 15  # of the 0.2 seconds below
QUICK = "--set max_seconds=0.2,prompt_seconds=0.4,max_steps=2 --temperature 0 --threads 1".split()


@pytest.fixture
def speak(cli: Cli, gguf: Path, codec: Path) -> Cli:
    """`speak(...)` with the model, the codec and quick settings given."""

    def run(*arguments: object) -> Result:
        return cli("speak", gguf, *arguments, "--codec", codec, *QUICK)

    return run


def done(result: Result) -> Result:
    assert result.code == 0, result
    return result


@pytest.mark.parametrize("mode", ["ar", "nar-len"])
def test_text_and_a_wav_become_a_wav_on_a_quantized_file(
    speak: Cli, voice: Path, tmp_path: Path, mode: str
) -> None:
    out, codes = tmp_path / "hello.wav", tmp_path / "hello.npz"
    result = done(
        speak(
            *("Hello world.", "--voice", voice, "-o", out, "--save-codes", codes),
            *("--set", f"mode={mode}", "--seed", 7, "--json"),
        )
    )
    info = soundfile.info(out)
    assert (info.samplerate, info.channels, info.frames) == (RATE, 1, FRAMES * 320)
    assert info.subtype == "PCM_16"
    assert read_codes(codes).codes.shape == (FRAMES, 8)
    told = json.loads(result.out)
    (sentence,) = told["sentences"]
    assert (sentence["phonemes"], sentence["mode"]) == ("həlˈoʊ wˈɜːld.", mode)
    assert (told["file"], told["codes"], told["seed"]) == (str(out), str(codes), 7)
    assert told["seconds"] == pytest.approx(0.2)
    stages = ["load", "text", "voice", "length", "level_0", "levels", "codec"]
    assert list(told["timings"]) == stages
    spent = told["timings"]
    assert all(spent[stage] > 0 for stage in stages if stage != "length" or mode == "nar-len")
    computing = sum(spent.values()) - spent["load"]
    assert told["real_time_factor"] == pytest.approx(computing / 0.2, rel=0.02)
    assert "sentence 1: 15 frames, 8 levels, 0.2 s of audio" in result.err
    assert f"note: {voice} is 0.5 seconds long; the 0.4 seconds from 0.0 on" in result.err
    assert sorted(tmp_path.iterdir()) == [codes, out]


def test_a_recording_is_transcribed_alike_as_sound_and_as_codes(
    cli: Cli, gguf: Path, codec: Path, voice: Path, tmp_path: Path, speak: Cli
) -> None:
    limit = ["--max-phonemes", 12, "--language", "en", "--threads", 1]
    heard = done(cli("transcribe", gguf, voice, "--codec", codec, *limit))
    assert heard.out.strip()
    as_json = done(cli("transcribe", gguf, voice, "--codec", codec, *limit, "--json"))
    told = json.loads(as_json.out)
    assert told["phonemes"] == heard.out.rstrip("\n")
    assert 0 < len(told["ids"]) <= 12
    assert all(seconds > 0 for seconds in told["timings"].values())
    # No codec is needed for codes, and none is looked for.
    spoken, codes = tmp_path / "a.wav", tmp_path / "a.npz"
    done(speak("Hello.", "-o", spoken, "--save-codes", codes))
    assert done(cli("transcribe", gguf, codes, *limit)).out.strip()
    # Of several, each with its path; all of them have to be there.
    both = done(cli("transcribe", gguf, voice, codes, "--codec", codec, *limit))
    assert [line.split("\t")[0] for line in both.out.splitlines()] == [str(voice), str(codes)]
    result = cli("transcribe", gguf, voice, tmp_path / "none.wav", "--codec", codec, *limit)
    assert "none.wav" in error_of(result, 2)
    assert result.out == ""


def test_saved_codes_are_sounded_again_without_llama_cpp(
    speak: Cli, gguf: Path, codec: Path, voice: Path, tmp_path: Path
) -> None:
    first, again, codes = (tmp_path / name for name in ("a.wav", "b.wav", "c.npz"))
    done(speak("Hello.", "--voice", voice, "-o", first, "--save-codes", codes))
    given = ["speak", gguf, "--codes", codes, "-o", again, "--codec", codec, "--json"]
    sounded = run_without("llama_cpp", *given)
    assert json.loads(done(sounded).out)["file"] == str(again)
    assert again.read_bytes() == first.read_bytes()


@pytest.mark.parametrize("module", ["soundfile", "phonemizer"])
def test_a_missing_package_is_named_with_its_remedy(
    gguf: Path, codec: Path, voice: Path, tmp_path: Path, module: str
) -> None:
    given = ["speak", gguf, "Hi.", "--voice", voice, "-o", tmp_path / "o.wav", "--codec", codec]
    message = error_of(run_without(module, *given, *QUICK), 3)
    assert f"needs the Python package {module}" in message
    assert "pip install '.[speech]'" in message
    assert list(tmp_path.iterdir()) == []


def test_the_text_comes_from_stdin_where_asked(
    speak: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def say(text: bytes) -> Result:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
        return speak("-", "-o", tmp_path / "out.wav", "--json", "--force")

    sentences = json.loads(done(say("One. Zwei für dich.".encode())).out)["sentences"]
    assert [sentence["text"] for sentence in sentences] == ["One.", "Zwei für dich."]
    assert "stdin is not UTF-8 (byte 1)" in error_of(say(b"a\xff"), 2)
    assert "more than 1,048,576 bytes" in error_of(say(b"Hi. " * 2_500_000), 2)


def test_a_task_answers_a_recording_with_one_as_long(
    speak: Cli, voice: Path, tmp_path: Path
) -> None:
    out, source = tmp_path / "out.wav", tmp_path / "source.wav"
    soundfile.write(source, 0.1 * np.random.default_rng(5).standard_normal(RATE // 2), RATE)
    said = ["Hello world.", "--voice", voice]
    done(speak(*said, "--task", "vc", "--source", source, "-o", out))
    assert soundfile.info(out).frames == 38 * 320


@pytest.mark.parametrize("append", [False, True])
def test_sound_that_stdout_takes_to_a_file_knows_its_length_where_it_can(
    gguf: Path, codec: Path, tmp_path: Path, append: bool
) -> None:
    path = tmp_path / "a.wav"
    arguments = ["speak", gguf, "Hi. You too.", "-o", "-", "--codec", codec, "--language", "en"]
    with path.open("ab" if append else "wb") as file:
        run_program(*arguments, *QUICK, capture_output=False, stdout=file, check=True)
    n_bytes = int.from_bytes(path.read_bytes()[40:44], "little")
    assert n_bytes == (0xFFFFFFFF if append else 2 * FRAMES * 320 * 2)
    assert soundfile.info(path).frames == 2 * FRAMES * 320


def test_a_pipe_gets_each_sentence_as_soon_as_it_is_done(gguf: Path, codec: Path) -> None:
    with start(gguf, codec, Path("-")) as process:
        assert process.stdout is not None
        first = process.stdout.buffer.read(44 + FRAMES * 320 * 2)[44:]
        assert process.poll() is None  # 399 are still to come
        process.kill()
        process.communicate()
    assert np.frombuffer(first, "<i2").any()


@pytest.mark.parametrize("given", [(), ("--set", "mode=ar", "--parallel", 2)], ids=str)
def test_a_long_text_tells_how_many_sentences_and_how_long_it_takes(
    speak: Cli, given: tuple[object, ...], tmp_path: Path
) -> None:
    text = "This is one. This is two. And this."
    result = done(speak(text, "--language", "en", "-o", tmp_path / "a.wav", *given))
    told = result.err.splitlines()
    assert told[0].startswith("loading ")
    assert re.fullmatch(r"speaking 3 sentences, \d+ phonemes", told[1])
    assert re.match(r"sentence 1 of 3: .* \(.*\), \d+ s left: This is one\.", told[2])
    assert re.match(r"sentence 3 of 3: .* \(.*\): And this\.", told[4])


def start(gguf: Path, codec: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """The program in its own process, speaking a long text."""
    text = " ".join(f"This is number {i} of many." for i in range(400))
    command = [sys.executable, "-m", "valle_convert", "speak", str(gguf), text, "-o", str(out)]
    command += ["--codec", str(codec), "--language", "en", "--set", "mode=ar", *QUICK, *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def interrupt(process: subprocess.Popen[str], how: signal.Signals) -> str:
    """Interrupt it when its second sentence is done."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("sentence 2 of 400:"):
            break
    process.send_signal(how)
    _, rest = process.communicate(timeout=60)
    return rest


def test_an_interrupted_speech_leaves_nothing(gguf: Path, codec: Path, tmp_path: Path) -> None:
    process = start(gguf, codec, tmp_path / "out.wav")
    rest = interrupt(process, signal.SIGINT)
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_speech_keeps_what_was_finished_where_asked(
    gguf: Path, codec: Path, tmp_path: Path
) -> None:
    out, codes = tmp_path / "out.wav", tmp_path / "out.npz"
    process = start(gguf, codec, out, "--keep-partial", "--save-codes", str(codes))
    rest = interrupt(process, signal.SIGTERM)
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    seconds = soundfile.info(out).duration
    whole = len(read_codes(codes).codes)
    assert 2 * FRAMES <= whole < 400 * FRAMES
    assert whole % FRAMES == 0
    assert whole * 320 <= soundfile.info(out).frames < (whole + FRAMES) * 320
    kept = f"kept {out} ({seconds:.1f} s of audio) and {codes} ({whole} frames)."
    assert rest.splitlines()[-1] == f"error: Interrupted; {kept}"
    assert sorted(tmp_path.iterdir()) == [codes, out]


def test_a_second_interrupt_aborts() -> None:
    # A shell's background job ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with stop_on_interrupt(keep=True) as should_stop:
        assert not should_stop()
        signal.raise_signal(signal.SIGINT)
        assert should_stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_a_model_of_another_codec_speaks_codes_only(
    cli: Cli, tmp_path: Path, small_checkpoint: Callable[..., Path]
) -> None:
    model, out = tmp_path / "model.gguf", tmp_path / "out.npz"
    checkpoint = small_checkpoint(levels=9, audio_tokens=1024, dim=32)
    write_gguf(plan_conversion(checkpoint, Choices(codec="dac-44khz")), model)
    refused = cli("speak", model, "Hi.", "-o", tmp_path / "o.wav", *QUICK)
    assert "uses the codec dac-44khz, and only encodec-24khz is built in" in error_of(refused, 2)
    done(cli("speak", model, "Hi.", "--save-codes", out, *QUICK))
    assert read_codes(out).codec.name == "dac-44khz"


def test_without_a_network_the_hub_is_named_with_what_to_do(
    converted: Convert, tmp_path: Path
) -> None:
    gguf = converted("single-classifier", "f32")  # of EnCodec's size
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    ended = run_program("speak", gguf, "Hi.", "-o", tmp_path / "o.wav", *QUICK, env=offline)
    message = error_of(Result(ended.returncode, ended.stdout, ended.stderr), 3)
    assert "hf download facebook/encodec_24khz" in message
    assert not (tmp_path / "o.wav").exists()
