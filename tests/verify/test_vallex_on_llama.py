"""VALL-E X through converted files on stock llama.cpp: the original's logits and codes."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from each_family import FAMILIES, copied, set_key
from make_vallex import VallexShape, make_vallex
from support import GOLDEN_VALLEX, ONE_THREAD, Convert, golden_checkpoint, open_reference
from vallex_golden import golden

from valle_convert import open_network, plan_conversion, write_gguf
from valle_convert.decode.batch import Element
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.families.bundle import Bundle, open_bundle, open_files
from valle_convert.families.family import Choices
from valle_convert.families.vallex.composed import VallexText
from valle_convert.gguf_file.keys import SET_ID_KEY
from valle_convert.gguf_file.read import GgufFile
from valle_convert.llama.mpt import MptSession
from valle_convert.metrics import nmse
from valle_convert.network.tuned import read_probe_rows

MAX_NMSE = FAMILIES["VALL-E X"].max_nmse


def test_copies_of_a_sequence_go_on_by_themselves_and_make_room(converted: Convert) -> None:
    """300 rows in each of three copies are more than the first context has."""
    given = golden("")
    draw = np.random.default_rng(0)
    with open_network(converted(GOLDEN_VALLEX, "f32"), n_threads=1) as network:
        reference = open_reference(golden_checkpoint(GOLDEN_VALLEX))
        for one in (network, reference):
            one.begin_ar(given.text, given.prompt[:, 0], "abc")
        for i in range(300):
            if i == 100:
                network.forget("b")
            elements = [
                Element(copy, int(draw.integers(0, 64)), 1 + len(given.prompt) + i)
                for copy in ("abc" if i < 100 else "ca")
            ]
            logits = [one.append_codes(elements) for one in (reference, network)]
            assert nmse(*logits) <= MAX_NMSE["f32"], i


def test_parts_of_two_sets_are_not_run_together(converted: Convert, tmp_path: Path) -> None:
    make_vallex(tmp_path / "other.pt", VallexShape(text_rows=128))
    write_gguf(plan_conversion(tmp_path / "other.pt", Choices("f16")), tmp_path / "o.gguf")
    paths = open_files(tmp_path / "o.gguf").paths
    ours = open_files(converted(GOLDEN_VALLEX, "f16")).paths
    right = [path.read_bytes() for path in paths]
    for which in (0, 1, 4):
        paths[which].write_bytes(ours[which].read_bytes())
        with pytest.raises(InputError, match=f"another set .*{SET_ID_KEY} differ"):
            open_bundle(paths[0])
        paths[which].write_bytes(right[which])
    paths[2].write_bytes(right[3])
    with pytest.raises(
        InputError, match=r"the part '\S+ nar.level 2'.* expected '\S+ nar.level 1'"
    ):
        open_bundle(paths[0])
    with pytest.raises(InputError, match=r"the part '\S+ nar.body'"):
        open_bundle(paths[1])
    paths[2].unlink()
    with pytest.raises(InputError, match=r"o-nar-1.gguf of the set of .*o.gguf is missing"):
        open_bundle(paths[0])


def session(files: Bundle) -> MptSession:
    return MptSession(
        files.path,
        probe_rows=read_probe_rows(files.main, files.model.ar.n_rows),
        activation_factor=files.model.activation_factor,
        settings=ONE_THREAD,
    )


@pytest.mark.parametrize("causal", [True, False])
def test_a_llama_cpp_with_one_mask_only_is_refused(
    causal: bool, converted: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = open_bundle(converted(GOLDEN_VALLEX, "q8_0"))
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


def test_long_texts_and_speech_fit_and_short_ones_after_them(converted: Convert) -> None:
    """A batch without a mask beyond `n_ubatch` would abort the process."""
    draw = np.random.default_rng(0)
    with open_network(converted(GOLDEN_VALLEX, "f32"), n_threads=1) as network:
        reference = open_reference(golden_checkpoint(GOLDEN_VALLEX))
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


def probe(session: MptSession, rows: np.ndarray) -> np.ndarray:
    return session.both_ways(rows, len(rows), slice(None))


def test_a_llama_cpp_that_keeps_copies_of_norms_is_refused(
    converted: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MptSession, "exchange", lambda _session, pieces: list(pieces))
    with pytest.raises(EnvironmentFault, match="does not compute with the norms"):
        open_network(converted(GOLDEN_VALLEX, "f16"))


def test_an_exchange_that_was_interrupted_is_done_again(converted: Convert) -> None:
    rows = np.random.default_rng(0).standard_normal((8, 64), dtype=np.float32)
    with open_network(converted(GOLDEN_VALLEX, "f16"), n_threads=1) as network:
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


def test_the_files_stay_as_they_are_and_no_descriptor_is_left(converted: Convert) -> None:
    paths = open_files(converted(GOLDEN_VALLEX, "f16")).paths
    before = [path.read_bytes() for path in paths]
    counts = []
    for _ in range(3):
        with open_network(paths[0]) as network:
            network._switch(5)
        counts.append(len(list(Path("/dev/fd").iterdir())))
    assert counts[1] == counts[2]
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.parametrize(
    ("part", "key", "value", "words"),
    [
        # The first level's graph is that of all.
        (4, "mpt.attention.layer_norm_epsilon", 1e-3, r"-nar-3.gguf describes another model"),
        (1, "valle.format_version", 99, r"-nar.gguf has format version 99"),
    ],
)
def test_a_part_that_does_not_go_with_the_others_is_refused(
    part: int, key: str, value: object, words: str, converted: Convert, tmp_path: Path
) -> None:
    paths = copied(converted(GOLDEN_VALLEX, "f16"), tmp_path).paths
    set_key(GgufFile(paths[part], allow_part=True), key, value)
    with pytest.raises(InputError, match=words):
        open_bundle(paths[0])
