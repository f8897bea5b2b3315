"""VALL-E X from the command line: symbols, and text to sound."""

import json
from pathlib import Path

import soundfile
from support import Cli
from vallex_golden import CHECKPOINT

from valle_convert.audio import read_codes
from valle_convert.families.vallex.symbols import symbol_ids


def test_tokenize_knows_the_symbols_and_tells_what_is_none(vallex: Path, cli: Cli) -> None:
    result = cli("tokenize", vallex, "ðɛɹ_c.", "--json")
    assert result.code == 0
    found = json.loads(result.out)
    assert found["llama_cpp"]["ids"] == found["bpe"]["ids"] == symbol_ids("ðɛɹ_c.")
    assert "the vocabulary lacks c (U+0063)" in result.err


def test_inspect_shows_no_row_without_a_value(vallex: Path, cli: Cli) -> None:
    """The golden codec of 64 codes is none that has a rate."""
    for file in (vallex, CHECKPOINT):
        shown = cli("inspect", file).out
        assert "codec" in shown
        assert "rate" not in shown
        assert not [line for line in shown.splitlines() if line.endswith(" ")]
        assert (
            json.loads(cli("inspect", file, "--json").out)["behaviour"]["frame rate (1/s)"] is None
        )


QUICK = "--temperature 0 --set max_seconds=0.2 --threads 1".split()


def test_text_and_a_voice_file_become_sound_and_codes(
    vallex: Path, codec: Path, voice_file: Path, tmp_path: Path, cli: Cli
) -> None:
    out, codes = tmp_path / "hello.wav", tmp_path / "hello.npz"
    given = ["-o", out, "--save-codes", codes, "--voice", voice_file, "--codec", codec]
    result = cli("speak", vallex, "[EN]Hello.[EN][ZH]你好。[ZH]", *given, "--json", *QUICK)
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert [one["phonemes"] for one in told["sentences"]] == ["hɛˈloʊ.", "ni↓↑xɑʊ↓↑."]
    assert [one["language"] for one in told["sentences"]] == ["en", "zh"]
    assert soundfile.info(out).frames == sum(one["frames"] for one in told["sentences"]) * 320
    assert len(read_codes(codes).codes) == sum(one["frames"] for one in told["sentences"])
