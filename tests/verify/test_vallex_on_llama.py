"""VALL-E X through converted files on stock llama.cpp: the original's logits and codes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from make_vallex import VallexShape, make_vallex
from vallex_golden import CHECKPOINT, all_logits, golden, greedy_codes
from vallex_shapes import random_inputs, random_vallex

from valle_convert.checkpoint import read_checkpoint
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.families.v5.on_llama import open_model, read_probe_rows
from valle_convert.families.vallex.files import (
    SET_ID_KEY,
    VallexSet,
    open_set,
    plan_vallex,
    set_paths,
)
from valle_convert.families.vallex.on_llama import VallexGguf
from valle_convert.families.vallex.protocol import VallexText
from valle_convert.families.vallex.reference import VallexReference
from valle_convert.gguf_file.keys import is_converted
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.write import write_set
from valle_convert.llama.mpt import MptSession
from valle_convert.metrics import nmse
from valle_convert.tokenizer.oracle import LlamaTokenizer

#: Set for this project; 6e-13, 6e-7 and 4e-4 were measured.
MAX_NMSE = {"f32": 1e-10, "f16": 1e-5, "q8_0": 5e-3}

Converted = Callable[[str], Path]


@pytest.fixture(scope="module")
def golden_set(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    folder, made = tmp_path_factory.mktemp("vallex"), set()

    def convert(out_type: str) -> Path:
        path = folder / f"{out_type}.gguf"
        if out_type not in made:
            write_set(plan_vallex(read_checkpoint(CHECKPOINT), out_type=out_type), path)
            made.add(out_type)
        return path

    return convert


@pytest.mark.parametrize("out_type", MAX_NMSE)
def test_every_golden_logit_comes_out_of_stock_llama_cpp(
    out_type: str, golden_set: Converted
) -> None:
    errors = {}
    with VallexGguf(golden_set(out_type), n_threads=1) as network:
        for prefix in ("", "noprompt."):
            given = golden(prefix)
            found = all_logits(network, given)
            errors |= {prefix + name: nmse(x, found[name]) for name, x in given.logits.items()}
    assert len(errors) == 11
    assert {name: error for name, error in errors.items() if not error <= MAX_NMSE[out_type]} == {}


@pytest.mark.parametrize("prefix", ["", "noprompt."])
def test_greedy_codes_of_all_levels_are_the_originals(prefix: str, golden_set: Converted) -> None:
    given = golden(prefix)
    with VallexGguf(golden_set("f32"), n_threads=1) as network:
        np.testing.assert_array_equal(greedy_codes(network, given), given.codes)


def test_copies_of_a_sequence_go_on_by_themselves_and_make_room(golden_set: Converted) -> None:
    """300 rows in each of three copies are more than the first context has."""
    given = golden("")
    draw = np.random.default_rng(0)
    checkpoint = read_checkpoint(CHECKPOINT)
    with VallexGguf(golden_set("f32"), n_threads=1) as network:
        reference = VallexReference(checkpoint.tensors, network.model)
        for one in (network, reference):
            one.begin_ar(given.text, given.prompt[:, 0], n_copies=3)
        for i in range(300):
            copies = [0, 1, 2] if i < 100 else [0, 2]
            codes = draw.integers(0, 64, len(copies), dtype=np.int32)
            logits = [one.step_ar(copies, codes) for one in (reference, network)]
            assert nmse(*logits) <= MAX_NMSE["f32"], i


def check(seed: int, folder: Path) -> None:
    shape, dtype = random_vallex(seed)
    make_vallex(folder / "random.pt", shape, dtype=dtype)
    checkpoint = read_checkpoint(folder / "random.pt")
    plan = plan_vallex(checkpoint, out_type="f32")
    write_set(plan, folder / "x.gguf")
    reference = VallexReference(checkpoint.tensors, plan.description.model)
    with VallexGguf(folder / "x.gguf", n_threads=1) as network:
        assert network.model == plan.description.model
        for draw in range(2):
            text, prompt, codes = random_inputs(network.model, seed + draw)
            ar = [one.continued(text, prompt[:, 0], codes[:, 0]) for one in (reference, network)]
            assert nmse(*ar) <= MAX_NMSE["f32"], (shape, dtype)
            steps = [network.begin_ar(text, prompt[:, 0])]
            steps += [network.step_ar([0], code[:1]) for code in codes]
            assert nmse(ar[0], np.concatenate(steps)) <= MAX_NMSE["f32"], (shape, dtype)
            for level in range(1, network.n_levels):
                nar = [one.pass_nar(text, prompt, codes[:, :level]) for one in (reference, network)]
                assert nmse(*nar) <= MAX_NMSE["f32"], (shape, dtype, level)


@pytest.mark.parametrize("seed", range(2000, 2006))
def test_random_shapes_compute_what_the_reference_computes(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_many_random_shapes_compute_what_the_reference_computes(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


def test_symbols_are_tokens_of_stock_llama_cpp(golden_set: Converted) -> None:
    """Held against the library that the project's `bpe_69.json` is of."""
    from tokenizers import Tokenizer, models

    from valle_convert.families.vallex.symbols import N_SPECIAL_SYMBOLS, VALLEX_SYMBOLS

    vocab = {symbol: i for i, symbol in enumerate(VALLEX_SYMBOLS)}
    theirs = Tokenizer(models.BPE(vocab, [], unk_token="[UNK]"))  # noqa: S106 - a token
    theirs.add_special_tokens(list(VALLEX_SYMBOLS[:N_SPECIAL_SYMBOLS]))
    draw = np.random.default_rng(0)
    letters = [*VALLEX_SYMBOLS[N_SPECIAL_SYMBOLS:], *"crABC 0129'\"éя中あ\U0001f600\n"]
    path = golden_set("f16")
    true_ids = GgufFile(path).keys["valle.tokenizer.true_ids"]
    with LlamaTokenizer(path) as llama:
        texts = ["".join(draw.choice(letters, draw.integers(1, 60))) for _ in range(500)]
        texts += ["[SEP]ðɛɹ[UNK]", "wo↓↑..._ʃiɑŋ↓↑"]
        for text in texts:
            found = llama.encode(text, add_special=False, parse_special=True)
            assert [true_ids[i] for i in found] == theirs.encode(text).ids, text


def other_set(folder: Path, **shape: object) -> Path:
    make_vallex(folder / "other.pt", VallexShape(text_rows=128, **shape))  # type: ignore[arg-type]
    write_set(plan_vallex(read_checkpoint(folder / "other.pt"), out_type="f16"), folder / "o.gguf")
    return folder / "o.gguf"


@pytest.mark.parametrize("which", [0, 1, 4])
def test_parts_of_two_conversions_are_not_run_together(
    which: int, golden_set: Converted, tmp_path: Path
) -> None:
    other = set_paths(other_set(tmp_path), 7)
    ours = set_paths(golden_set("f16"), 7)
    other[which].write_bytes(ours[which].read_bytes())
    with pytest.raises(InputError, match=f"another set .*{SET_ID_KEY} differ"):
        open_set(other[0])


def test_swapped_and_missing_and_foreign_parts_are_told(
    golden_set: Converted, tmp_path: Path
) -> None:
    paths = set_paths(other_set(tmp_path), 7)
    first, second = paths[2].read_bytes(), paths[3].read_bytes()
    paths[2].write_bytes(second)
    paths[3].write_bytes(first)
    with pytest.raises(InputError, match=r"the part 'nar.level' 2 .* where 'nar.level' 1"):
        open_set(paths[0])
    with pytest.raises(InputError, match=r"the part 'nar.body'"):
        open_set(paths[1])
    paths[3].unlink()
    paths[2].write_bytes(first)
    with pytest.raises(InputError, match=r"no part of o.gguf .*o-nar-2.gguf"):
        open_set(paths[0])
    file = GgufFile(golden_set("f16"))
    assert is_converted(file.keys)
    with pytest.raises(InputError, match="part of a VALL-E X"):
        open_model(file)


def test_files_of_other_factors_are_not_run_together(golden_set: Converted, tmp_path: Path) -> None:
    paths = set_paths(tmp_path / "x.gguf", 7)
    for exact, rounded, mixed in zip(
        set_paths(golden_set("f32"), 7), set_paths(golden_set("f16"), 7), paths, strict=True
    ):
        mixed.write_bytes((rounded if mixed == paths[1] else exact).read_bytes())
    with pytest.raises(InputError, match="another set"):
        open_set(paths[0])


def test_a_quantized_body_runs_with_the_other_first_parts(
    golden_set: Converted, tmp_path: Path
) -> None:
    paths = set_paths(tmp_path / "x.gguf", 7)
    for rounded, quantized, mixed in zip(
        set_paths(golden_set("f16"), 7), set_paths(golden_set("q8_0"), 7), paths, strict=True
    ):
        mixed.write_bytes((quantized if mixed == paths[1] else rounded).read_bytes())
    given = golden("")
    with VallexGguf(paths[0], n_threads=1) as network:
        found = network.pass_nar(given.text, given.prompt, given.codes[:, :3])
    assert nmse(given.logits["nar3"], found) <= MAX_NMSE["q8_0"]


# ------------------------------------------------------------ what is found out at load


def session(files: VallexSet) -> MptSession:
    return MptSession(
        files.ar.path,
        probe_rows=read_probe_rows(files.ar, files.model.ar.n_rows),
        activation_factor=files.model.activation_factor,
        n_threads=1,
    )


@pytest.mark.parametrize("causal", [True, False])
def test_a_llama_cpp_with_one_mask_only_is_refused(
    causal: bool, golden_set: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = open_set(golden_set("q8_0"))
    session(files).close()
    from valle_convert.llama.library import load_library

    api = load_library().api
    real = api.llama_set_causal_attn
    monkeypatch.setattr(
        api, "llama_set_causal_attn", lambda context, _wanted: real(context, causal)
    )
    with pytest.raises(EnvironmentFault, match="does not attend as"):
        session(files)


def test_a_gelu_without_its_factor_is_no_relu() -> None:
    from valle_convert.llama.mpt import prove_relu

    for factor in (64, 256, 4096):
        prove_relu(factor)
    with pytest.raises(EnvironmentFault, match="does not compute ReLU"):
        prove_relu(1)


def test_long_texts_and_speech_fit_and_short_ones_after_them(golden_set: Converted) -> None:
    """A batch without a mask beyond `n_ubatch` would abort the process."""
    draw = np.random.default_rng(0)
    with VallexGguf(golden_set("f32"), n_threads=1) as network:
        reference = VallexReference(read_checkpoint(CHECKPOINT).tensors, network.model)
        for n_text, n_prompt, n in ((3, 0, 2), (700, 300, 900), (40, 5, 600), (1, 0, 1)):
            text = VallexText(
                draw.integers(0, 70, n_text, dtype=np.int32),
                draw.integers(0, 3, n_text, dtype=np.int32),
            )
            codes = draw.integers(0, 64, (n_prompt + n, 8), dtype=np.int32)
            prompt, frames = codes[:n_prompt], codes[n_prompt:]
            ar = [one.continued(text, prompt[:, 0], frames[:, 0]) for one in (reference, network)]
            nar = [one.pass_nar(text, prompt, frames[:, :7]) for one in (reference, network)]
            assert nmse(*ar) <= MAX_NMSE["f32"], n_text
            assert nmse(*nar) <= MAX_NMSE["f32"], n_text


# ------------------------------------------------------------------- one model for all levels


def probe(session: MptSession, rows: np.ndarray) -> np.ndarray:
    return session.both_ways(rows, len(rows), slice(None))


@pytest.mark.parametrize("out_type", MAX_NMSE)
def test_an_exchanged_level_gives_the_bits_of_its_own_file(
    out_type: str, golden_set: Converted
) -> None:
    files = open_set(golden_set(out_type))
    rows = np.random.default_rng(0).standard_normal((40, 64), dtype=np.float32)
    found = {}
    with VallexGguf(files, n_threads=1) as network:
        for level in (1, 7, 2, 2, 5, 3, 6, 4, 1):
            network._switch(level)
            found.setdefault(level, []).append(probe(network._nar, rows))
    for level, ours in found.items():
        with MptSession(
            files.levels[level - 1].path,
            [files.body.path],
            probe_rows={},
            activation_factor=files.model.activation_factor,
            n_threads=1,
            cache_type="f32" if out_type == "f32" else "f16",
            proven=True,
        ) as session:
            theirs = probe(session, rows)
        for one in ours:
            np.testing.assert_array_equal(one, theirs)


def test_a_llama_cpp_that_keeps_copies_of_norms_is_refused(
    golden_set: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MptSession, "exchange", lambda _session, pieces: list(pieces))
    with pytest.raises(EnvironmentFault, match="does not compute with what is written"):
        VallexGguf(golden_set("f16"))


def test_an_exchange_that_was_interrupted_is_done_again(golden_set: Converted) -> None:
    rows = np.random.default_rng(0).standard_normal((8, 64), dtype=np.float32)
    with VallexGguf(golden_set("f16"), n_threads=1) as network:
        network._switch(3)
        expected = probe(network._nar, rows)
        real = network._nar.exchange

        def half(pieces: Iterable[tuple[int, memoryview]]) -> None:
            given = list(pieces)
            real(given[: len(given) // 2])
            raise KeyboardInterrupt

        network._nar.exchange = half  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            network._switch(4)
        network._nar.exchange = real  # type: ignore[method-assign]
        network._switch(3)
        np.testing.assert_array_equal(probe(network._nar, rows), expected)


def test_the_files_stay_as_they_are_and_no_descriptor_is_left(golden_set: Converted) -> None:
    paths = set_paths(golden_set("f16"), 7)
    before = [path.read_bytes() for path in paths]
    counts = []
    for _ in range(3):
        with VallexGguf(paths[0]) as network:
            network._switch(5)
        counts.append(len(list(Path("/dev/fd").iterdir())))
    assert counts[1] == counts[2]
    assert [path.read_bytes() for path in paths] == before


def test_a_level_of_another_graph_is_refused(golden_set: Converted, tmp_path: Path) -> None:
    """Since the first level's describes that of all."""
    paths = set_paths(tmp_path / "x.gguf", 7)
    for source, target in zip(set_paths(golden_set("f16"), 7), paths, strict=True):
        target.write_bytes(source.read_bytes())
    contents = paths[4].read_bytes()
    name = b"mpt.attention.layer_norm_epsilon"
    start = contents.index(name) + len(name) + 4
    changed = contents[:start] + np.float32(1e-3).tobytes() + contents[start + 4 :]
    paths[4].write_bytes(changed)
    with pytest.raises(InputError, match=r"x-nar-3.gguf describes another model"):
        open_set(paths[0])
