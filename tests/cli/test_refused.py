"""A command line that cannot be carried out is refused in one sentence, and nothing is written."""

import shlex
from pathlib import Path

import numpy as np
import pytest
from make_checkpoint import Shape, make_checkpoint
from support import GOLDEN, GOLDEN_VERSION_7, Cli, Convert, error_of, golden_checkpoint
from vallex_golden import CHECKPOINT as VALLEX

from valle_convert import write_lora
from valle_convert.audio import SavedCodes, write_codes
from valle_convert.model.spec import UNKNOWN_CODEC

CHECKPOINT = golden_checkpoint("ar-nar-len")
CANNOT = "does not support VALL-E of version 7 yet."

#: A command, and words of the refusal.
OPTIONS = [
    ("verify GGUF --level logits", "--level"),
    ("verify GGUF --trace", "--trace"),
    ("inspect GGUF --config x.yaml", "--config"),
    ("lora GGUF x.sft o.gguf --config x.yaml", "--config"),
    ("inspect SET --lora x.sft", "--lora"),
    ("inspect FOLDER --lora x.sft", "--lora"),
    ("verify GGUF --tokenizer x.json", "--tokenizer"),
    *((f"verify CHECKPOINT GGUF --gpu-layers {n}", "--gpu-layers") for n in (-2, 1 << 32, "ten")),
    ("verify GGUF --lora x.sft", "--lora"),
    ("verify CHECKPOINT GGUF --biases CHECKPOINT", "--biases"),
    ("verify OLD GGUF --lora x.sft", "--lora"),
    ("verify VALLEX SET --tokenizer x.json", "--tokenizer"),
    ("verify VALLEX SET --level structure --lora ADAPTER", "lora does not support VALL-E X yet"),
    *(
        (f"utterances {given} --model GGUF", words)
        for given, words in (
            ("a.wav x --list l", "--list: it cannot be combined with AUDIO"),
            ("out", "give recordings"),
            ("VOICE VOICE out --text Hello.", "2 recordings and 1 text;"),
            ("absent.wav out --text Hello.", "no recording absent.wav"),
            ("VOICE out --text Hello. --language xx", "language 'xx'"),
            ("VOICE out --text ...", "nothing to say"),
            ("VOICE out --text Hello. --codec LARGE", "1024 codes"),
            ("VOICE out --text Hello. --voice absent.wav", "no recording absent.wav"),
            ("FEW out --text Hello.", "4 levels of 64 codes"),
            ("TEXTS out --text Hello. --codec CODEC", "texts.txt"),
            ("out --list TEXTS", "line 1 has 1 tab-separated fields"),
            ("out --list TEXTS --text a", "it cannot be combined with"),
        )
    ),
    ("utterances VOICE out --text Hello. --model absent.gguf", "absent.gguf"),
    *((f"{word} GGUF", f"named {word!r}. Did you mean") for word in ("inspekt", "verfiy", "speek")),
    ("list GGUF", "No command or checkpoint named 'list'. valle-convert --help lists"),
    *((f"'{path}' o.gguf", "There is no file") for path in ("a/b", "a\\b", "C:model", "a.sft")),
    ("export GGUF ''", "the name is empty"),
    *(
        (f"{command} CHECKPOINT o", "is not a complete GGUF file")
        for command in ("export", "repair")
    ),
    ("repair GGUF o.gguf", "needs no repair"),
    *(
        (command, "SiLU instead of GELU")
        for command in (
            "convert OLD o.gguf",
            "OLD o.gguf",
            "export OLD out",
            "speak OLD Hi. -o spoken.wav",
            "tokenize OLD a",
            "quantize OLD out --types Q4_K_M",
            "verify OLD",
            "transcribe OLD VOICE",
            "imatrix OLD -o out.imatrix",
            "utterances VOICE out --model OLD --text a",
        )
    ),
    ("tokenize GGUF a\udcff", "The text is not valid Unicode"),
    ("convert CHECKPOINT -", "- is not a file name here"),
    ("CHECKPOINT", "--dry-run"),
    ("CHECKPOINT no/out.gguf", "mkdir -p"),
    ("CHECKPOINT o.gguf --codec-name mp3", "no codec 'mp3'"),
    ("CHECKPOINT o.gguf --codec-name encodec-24khz", "has 8 levels of 1024 codes, but the model"),
    ("CHECKPOINT o.gguf --name \udcff\udcfe", "The option --name: name is not valid UTF-8"),
    ("CHECKPOINT o.gguf --name ''", "The option --name: name is '', expected some text"),
    ("CHECKPOINT o.gguf --name ' '", "The option --name: name is ' ', expected some text"),
    ("publish o.gguf owner --dry-run", "is no OWNER/NAME"),
    ("publish o.gguf --message words", "has no effect"),
    # ---- scan
    ("scan GGUF x.txt", "OUT.txt: it has no effect without --target-bits or --max-kl"),
    ("scan GGUF --target-bits 4 --max-kl 0", "--max-kl: it cannot be combined with --target"),
    ("scan GGUF o.txt --target-bits nan", "nan is not finite"),
    ("scan GGUF t.txt --target-bits 5 --types Q9", "No tensor type 'Q9'; expected"),
    ("scan GGUF t.txt --target-bits 5", "give --checkpoint"),
    ("scan GGUF --imatrix .", "is a directory"),
    # ---- quantize
    ("quantize GGUF o.gguf Q8_0 --types Q4_0", "--types: it cannot be combined with TYPE"),
    ("quantize GGUF o.gguf Q8_0 --threads 99999999", "--threads"),
    ("quantize GGUF o.gguf Q8_0 --log ''", "the name is empty"),
    ("quantize GGUF o.gguf Q8_0 --lora x.sft", "there is no checkpoint"),
    ("quantize GGUF o.gguf Q8_0 --config x.yaml", "there is no checkpoint"),
    ("quantize GGUF o.gguf Q9", "There is no type"),
    ("quantize GGUF out --types ,", "list of types is empty"),
    ("quantize GGUF o.gguf --types Q8_0,Q4_0", "give a folder"),
    ("quantize GGUF o.gguf Q8_0 --resume", "--resume"),
    ("quantize GGUF o.gguf Q8_0 --tensor-types absent.txt", "There is no list of tensor types"),
    ("quantize GGUF o.gguf Q8_0 --tensor-type attn", "PATTERN=TYPE"),
    ("quantize GGUF o.gguf Q8_0 --llama-quantize /nowhere", "no program that can be run"),
    ("quantize GGUF o.gguf IQ2_XXS", "without an importance matrix"),
    ("quantize GGUF o.gguf IQ2_XXS --imatrix none", "leave out --imatrix none"),
    (
        "quantize GGUF o.gguf Q4_K --tensor-type ffn_down=IQ2_XXS --imatrix none",
        "Q4_K with ffn_down=iq2_xxs cannot be made without",
    ),
    ("quantize GGUF o.gguf Q4_0 --imatrix absent.gguf", "There is no"),
    ("quantize GGUF o.gguf Q4_0 --imatrix .", "give --checkpoint"),
    ("quantize GGUF o.gguf Q4_0 --imatrix GGUF", "not an importance matrix"),
    ("quantize VALLEX out --types Q8_0 --imatrix .", "voice file of VALL-E X"),
    ("check-manifest GGUF", "Give its folder"),
    ("check-manifest .", "There is no manifest"),
    ("quantize GGUF folder Q8_0", "For a folder, use --types Q8_0"),
    # ---- evaluate
    ("evaluate GGUF --no-worse-than x.json@0.9", "--no-worse-than"),
    ("evaluate GGUF --no-worse-than x.json@nan", "--no-worse-than"),
    ("evaluate GGUF --max-wer 1", "--max-wer: it has no effect without --asr"),
    ("evaluate GGUF --types Q8_0", "--types selects files"),
    ("evaluate GGUF --asr true", "--asr"),
    ("evaluate GGUF --listen --voice x.wav", "--voice"),
    ("evaluate GGUF --config x.yaml", "--config"),
    ("evaluate OUT --checkpoint CHECKPOINT --types Q6_K", "no converted model of type Q6_K"),
    ("evaluate OUT --checkpoint CHECKPOINT --types Q8_0,Q6_K", "no file of type Q6_K"),
    *(
        (f"evaluate GGUF --checkpoint CHECKPOINT {given}", words)
        for given, words in (
            ("--prune", "give folders"),
            ("--data .", "has no .npz files"),
            ("--data absent", "has no .npz files"),
            ("--report r.txt", "one of .json"),
            ("--report wide.sft", "one of .json"),
            ("--max-kl nan", "--max-kl is nan"),
            ("--max-kl inf", "--max-kl is inf"),
            ("--min-agreement 97", "from 0 to 1, such as 0.97"),
            ("--max-kl Q8_O=1e-3", "did you mean Q8_0?"),
            ("--max-kl Q6_K=1e-3", "--max-kl limits Q6_K"),
            ("--max-kl 1e-3,1e-2", "two limits"),
            ("--no-worse-than absent.json", "There is no report"),
        )
    ),
    # ---- speak; a value is given even if it is the default
    ("speak GGUF Hi --task tts --source a.wav", "--source: it has no effect without --task vc"),
    ("speak GGUF --codes a.npz -o o.wav --seed 0", "--seed: it has no effect without TEXT or"),
    ("speak GGUF Hi --save-codes o.npz --set guidance_strength=inf", "a finite number"),
    ("speak SINGLE Hi. --save-codes o.npz --set mode=nar-len", "use the mode ar"),
    ("speak GGUF Hi. --save-codes o.npz --parallel 2", "leave it out, or add --set mode=ar"),
    ("speak SEVEN Hi. --save-codes o.npz --parallel 2", "--parallel does not apply; leave it out"),
    # Before the hub is asked for a codec.
    ("speak GGUF Hi. -o o.wav", "trained on 8 levels of 64 codes"),
    *(
        (f"speak GGUF -o o.wav --codec CODEC {given}", words)
        for given, words in (
            ("''", "nothing to say"),
            ("a\udcff", "not valid Unicode"),
            ("a\udcff --phonemes", "not valid Unicode"),
            ("Привет.", "the script Cyrillic"),
            ("Hi. --voice TEXTS", "cannot be read as audio"),
            ("Hi. --voice none.wav", "There is no audio file"),
            ("Hi. --voice FOLDER", "is a directory, expected an audio file"),
            ("Hi. --codes NOISE", "is no file of codes"),
            ("Hi. --temperature -1", "temperature is -1"),
            ("Hi. --set tempo=2", "--set tempo=2"),
            ("Hi. -o o.aac", "must end in .wav, .flac, .ogg"),
            ("Hi. -o o", "must end in .wav, .flac, .ogg"),
            # The last of an option that is given twice counts.
            ("Hi. --codec none", "There is no codec "),
            ("Hi. --codec GGUF", "architecture 'gemma', expected a codec"),
            ("Hi. --codec LARGE", "8 levels of 1024 codes, and the model was trained on 8 levels"),
        )
    ),
    *(
        (f"speak GGUF {given}", "Invalid value")
        for given in (
            "Hi.",
            "-o o.wav",
            "Hi. -o o.wav --source a.wav",
            "--codes a.npz",
            "--codes a.npz --save-codes b.npz",
            "--task ns -o o.wav",
            "--task ns --source a.wav --voice b.wav -o o.wav",
            "--task vc --source a.wav -o o.wav",
            "--codes a.npz -o o.wav --voice a.wav",
            "--codes a.npz -o o.wav --temperature 1",
            "--codes a.npz -o o.wav --set mode=ar",
            "--codes a.npz -o o.wav --phonemes",
            "--codes a.npz -o o.wav --threads 1",
            "--codes a.npz -o o.wav --keep-partial",
            "Hi. -o o.wav --voice-text Ho.",
            "Hi. -o - --json",
            "Hi. -o o.wav --threads 0",
            "Hi. -o o.wav --parallel 65",
            "hi -o o.wav --phonemes --parallel 2",
        )
    ),
]

#: The same of what a family cannot do, even if a value is the default.
FAMILIES = [
    *(
        (f"speak SET Hi. --save-codes o.npz {given}", words)
        for given, words in (
            ("--set max_steps=3,guidance_strength=1", "guidance_strength do not apply"),
            ("--set mode=nar-len", "--set mode does not apply to VALL-E X; leave it out."),
            ("--set prompt_seconds=3", "--set prompt_seconds does not apply to VALL-E X"),
            ("--set repetition_penalty=1.0", "--set repetition_penalty does not apply to VALL-E X"),
            ("--lora a.gguf", "--lora does not apply to VALL-E X; leave it out."),
            ("--task sr --source a.wav", "--task sr does not apply to VALL-E X; leave it out."),
            ("--language de", "does not speak the language 'de'"),
            ("--set accent=fr", "does not speak the language 'fr'"),
            ("--set best_of=0", "best_of is 0"),
        )
    ),
    ("transcribe SET CODES", "transcribe does not support VALL-E X yet."),
    ("export SET out", "export does not support VALL-E X yet."),
    ("tokenize SET a --tokenizer VALLEX", "one table of symbols"),
    ("tokenize SET-NAR a", "give the set's main file"),
    ("tokenize SET-NAR-3 a", "give the set's main file"),
    *(
        (f"speak GGUF Hi. --save-codes o.npz {given}", "does not apply to VALL-E; leave it out.")
        for given in ("--set best_of=1", "--set accent=en", "--voice CODES --voice-text Hi")
    ),
    *(
        (f"speak SEVEN {given} --save-codes o.npz", f"{words} VALL-E of version 7; leave it out.")
        for given, words in (
            ("Hi. --set mode=ar", "--set mode does not apply to"),
            ("Hi. --set nar_temperature=0.5", "--set nar_temperature does not apply to"),
            ("Hi. --set best_of=2", "--set best_of does not apply to"),
            ("Hi. --lora ADAPTER", "--lora does not apply to"),
            ("Hi. --voice CODES --task vc --source CODES", "--task vc does not apply to"),
            ("Hi. --task ns --source CODES", "--task ns does not apply to"),
            ("Hi. --task sr --source CODES", "--task sr does not apply to"),
        )
    ),
    ("speak SEVEN-AUDIO Hi. --save-codes o.npz", "give the set's main file"),
    ("lora SEVEN ADAPTER o.gguf", f"lora {CANNOT}"),
    ("transcribe SEVEN CODES", f"transcribe {CANNOT}"),
    ("utterances CODES --text Hi. --model SEVEN out", f"utterances {CANNOT}"),
    ("evaluate SEVEN --checkpoint SEVENTH --listen --sentences TEXTS", f"listen {CANNOT}"),
    ("convert SEVENTH o.gguf --lora LORA", "--lora does not apply to VALL-E of version 7"),
]


@pytest.fixture(scope="session")
def known(
    converted: Convert,
    vallex: Path,
    lora: Path,
    codec: Path,
    voice: Path,
    quantized: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, object]:
    """What the words in capitals stand for."""
    folder, seven = tmp_path_factory.mktemp("known"), converted(GOLDEN_VERSION_7, "f16")
    np.savez(folder / "codes.npz", codes=np.zeros((9, 8), np.int32), codec=np.str_("unknown"))
    few = SavedCodes(np.zeros((9, 4), np.int32), UNKNOWN_CODEC, 64)
    write_codes(folder / "few.npz", few)
    (folder / "texts.txt").write_text("Hi.\nYes.\n", encoding="utf-8")
    (folder / "noise.npz").write_bytes(np.random.default_rng(0).bytes(5000))
    write_lora(CHECKPOINT, lora, folder / "adapter.gguf")
    return {
        "GGUF": converted("ar-nar-len", "f16"),
        "SINGLE": converted("single-classifier", "f32"),
        "OUT": quantized / "out",
        "CODEC": codec,
        "LARGE": GOLDEN / "encodec-small" / "hf",
        "NOISE": folder / "noise.npz",
        "CHECKPOINT": CHECKPOINT,
        "OLD": GOLDEN / "old-gguf" / "f16.gguf",
        "VALLEX": VALLEX,
        "SET": vallex,
        "SET-NAR": vallex.with_name(f"{vallex.stem}-nar.gguf"),
        "SET-NAR-3": vallex.with_name(f"{vallex.stem}-nar-3.gguf"),
        "FOLDER": vallex.parent,
        "SEVEN": seven,
        "SEVEN-AUDIO": seven.with_name(f"{seven.stem}-audio.gguf"),
        "SEVENTH": golden_checkpoint(GOLDEN_VERSION_7),
        "CODES": folder / "codes.npz",
        "FEW": folder / "few.npz",
        "VOICE": voice,
        "TEXTS": folder / "texts.txt",
        "LORA": lora,
        "ADAPTER": folder / "adapter.gguf",
    }


@pytest.mark.parametrize(("arguments", "words"), [*OPTIONS, *FAMILIES])
def test_what_cannot_be_done_is_refused(
    arguments: str,
    words: str,
    known: dict[str, object],
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli(*(known.get(word, word) for word in shlex.split(arguments)))
    assert result.code == 2, result
    assert "Traceback" not in result.err
    assert "converting" not in result.err
    assert words in " ".join(result.err.split())
    assert list(tmp_path.iterdir()) == []


def test_a_lora_of_another_model_is_refused_before_anything_is_measured(
    lora: Path, tmp_path: Path, cli: Cli
) -> None:
    adapters = {
        base: tmp_path / f"{i}.gguf" for i, base in enumerate((CHECKPOINT, tmp_path / "other.sft"))
    }
    other, source = tmp_path / "other.sft", tmp_path / "other.gguf"
    make_checkpoint(other, Shape(heads=4, kv_heads=2))
    assert cli(other, source, "--outtype", "f16", "--verify", "none").code == 0
    for base, adapter in adapters.items():
        write_lora(base, lora, adapter)
    run = ("evaluate", source, "--checkpoint", other, "--utterances", "1", "--lora")
    assert "is not an adapter for" in error_of(cli(*run, adapters[CHECKPOINT]), 2)
    assert not source.with_suffix(".measurements.json").exists()
    assert cli(*run, adapters[other]).code == 0
