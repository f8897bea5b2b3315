"""The vocabulary's source, the file made of it, and the checkpoints that were trained with it."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from safetensors import safe_open

from valle_convert.tokenizer.bpe import PhonemeBpe
from valle_convert.tokenizer.choose import BUILT_IN
from valle_convert.tokenizer.corpus import IPA_FILE, ipa_lines

ROOT = Path(__file__).parents[2]
GOLDEN = ("ar-nar-len", "ar-nar-len-unified-causal", "single-classifier")


@pytest.fixture(scope="module")
def build() -> ModuleType:
    name = "build_tokenizer"
    spec = importlib.util.spec_from_file_location(name, ROOT / "tokenizer" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_packaged_file_is_what_the_script_makes_byte_for_byte(build: ModuleType) -> None:
    made = build.build(build.SOURCE.read_text(encoding="utf-8"))
    assert BUILT_IN.read_bytes() == made.encode("utf-8")
    assert build.TARGET == BUILT_IN


@pytest.mark.parametrize("folder", GOLDEN)
def test_the_vocabulary_is_the_one_that_the_checkpoints_carry(
    folder: str, published: PhonemeBpe
) -> None:
    with safe_open(ROOT / "fixtures" / "golden" / folder / "fp32.sft", "np") as checkpoint:
        symmap = json.loads(checkpoint.metadata()["userdata"])["symmap"]
    assert published.vocab == symmap


def test_it_has_281_strings_on_256_ids_and_173_merges(published: PhonemeBpe) -> None:
    assert (len(published.vocab), published.n_ids, len(published.merges)) == (281, 256, 173)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("4 a\n", "no section"),
        ("[special]\n0 <unk>\n[letters]\n1 a\n", "no section of this file is called '[letters]'"),
        ("[phonemes]\n0 a a\n", "second time"),
        ("[phonemes]\nfour a\n", "line 2"),
        ("[phonemes]\n0 a\n1 b\n[merges]\n1: a+b\n", "counts from 1, and 0 is next"),
        ("[phonemes]\n0 a\n[merges]\n0: ab\n", "line 4"),
    ],
)
def test_a_faulty_line_of_the_source_is_named(build: ModuleType, text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=r"phonemes\.txt, line") as error:
        build.read_table(text)
    assert fault in str(error.value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[phonemes]\n0 a\n2 b\n", "gives no string to the ids"),
        ("[phonemes]\n0 a\n1 b\n2 ab\n[merges]\n0: a+b\n", "more than once"),
        ("[special]\n0 a\n[phonemes]\n1 a\n", "more than once"),
    ],
)
def test_a_source_that_contradicts_itself_is_refused(
    build: ModuleType, text: str, fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        build.read_table(text).vocabulary()


def test_the_ipa_corpus_has_thousands_of_lines_and_covers_the_phonemes(
    published: PhonemeBpe,
) -> None:
    lines = ipa_lines()
    assert len(lines) > 2500
    assert IPA_FILE.stat().st_size < 400_000
    seen = set("".join(lines))
    letters = {string for string in published.vocab if len(string) == 1 and string.isalpha()}
    # No voice of espeak-ng that is used says these: q, ˇ ˉ ˊ ˋ (tones of another system), ...
    assert len(letters & seen) / len(letters) > 0.85
