"""What a session finds out about llama.cpp, and how it says that something is wrong."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sessions import open_session
from support import PROJECT, run_python

from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.gguf_file.read import GgufFile
from valle_convert.llama.context import Context, Settings
from valle_convert.llama.gemma import GemmaSession
from valle_convert.llama.library import load_library
from valle_convert.llama.selftest import quantize_file
from valle_convert.llama.tiny import GemmaShape, random_gemma, write_gemma
from valle_convert.metrics import nmse
from valle_convert.network.tuned import head_rows

SHAPE = GemmaShape(n_embd=256, n_head=4, n_head_kv=4, n_layer=2, n_ff=256, n_vocab=300)
WEIGHTS = random_gemma(SHAPE, seed=0)
SEGMENTS = np.array([0, 1, 2, 0, 1])


def tokens(n: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((n, SHAPE.n_embd)).astype(np.float32)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for file_type in ("f32", "f16", "q8_0"):
        write_gemma(folder / f"{file_type}.gguf", SHAPE, WEIGHTS, file_type=file_type)
    quantize_file(load_library(), folder / "f32.gguf", folder / "q4_k.gguf", "Q4_K_S")
    return folder


@pytest.mark.parametrize("file_type", ["f32", "f16", "q8_0", "q4_k"])
def test_both_proofs_hold_for_every_type_of_weights(models: Path, file_type: str) -> None:
    with open_session(models / f"{file_type}.gguf") as session:
        assert session.input_scale == 16.0  # sqrt(256): llama.cpp's gemma scales embeddings too
        session.step(tokens(5), SEGMENTS, causal=True)
        assert session.length() == 5


def leave_rotations_pending(patch: pytest.MonkeyPatch) -> None:
    """A llama.cpp that saved pending rotations would behave as one that is never asked to."""
    patch.setattr(Context, "drop_pending_rotation", lambda _context, _sequence: None)


def look_at_logits_alone(patch: pytest.MonkeyPatch) -> None:
    """Each half of the proof has to see it without the other."""
    leave_rotations_pending(patch)
    patch.setattr("valle_convert.llama.gemma.keys_stay_as_they_were", lambda *_: True)


def change_states(patch: pytest.MonkeyPatch) -> None:
    restore = Context.restore

    def damaged(context: Context, sequence: int, state: np.ndarray) -> None:
        state = state.copy()
        state[-1000:] = 0  # values of the last layer
        restore(context, sequence, state)

    patch.setattr(Context, "restore", damaged)


@pytest.mark.parametrize("damage", [leave_rotations_pending, look_at_logits_alone, change_states])
def test_the_proof_of_segments_fails_where_they_are_not_supported(
    damage: Callable[[pytest.MonkeyPatch], None], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(monkeypatch)
    file_type = "q4_k" if damage is look_at_logits_alone else "f32"
    with open_session(models / f"{file_type}.gguf") as session:
        with pytest.raises(EnvironmentFault, match="does not support positions that restart"):
            session.step(tokens(5), SEGMENTS, causal=True)
        assert session.length() == 0
        # One segment needs no trick, and gets no proof.
        session.step(tokens(5), np.arange(5), causal=True)


@pytest.mark.parametrize("file_type", ["f32", "f16", "q8_0", "q4_k"])
def test_the_proof_of_states_sees_another_tensor_in_their_place(
    models: Path, file_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm = WEIGHTS["output_norm.weight"]
    with open_session(models / f"{file_type}.gguf", last_norm=norm) as session:
        assert session.step(tokens(5), SEGMENTS, causal=False).shape == (1, SHAPE.n_embd)
    for name in ("l_out-0", "result_norm", "nothing"):
        monkeypatch.setattr("valle_convert.llama.context.STATES", name)
        with pytest.raises(EnvironmentFault, match=r"states of (the last layer|.*expected)"):
            open_session(models / f"{file_type}.gguf", last_norm=norm)


@pytest.mark.parametrize(("file_type", "rounding"), [("f32", 1e-11), ("f16", 1e-6), ("q4_k", 1e-3)])
@pytest.mark.parametrize("causal", [True, False])
def test_the_wanted_rows_of_the_head_give_the_logits_of_the_whole_one(
    file_type: str, rounding: float, causal: bool, models: Path
) -> None:
    path = models / f"{file_type}.gguf"
    places = np.r_[0:15, 0:9]
    x = np.random.default_rng(3).standard_normal((len(places), SHAPE.n_embd), np.float32)
    found = []
    for own_head in (False, True):
        how = Settings(own_head=own_head)
        with open_session(path, settings=how, head_rows=head_rows(GgufFile(path))) as session:
            assert (session._output == "normed") == own_head
            found.append(
                [
                    session.step(x, places, causal=causal, outputs=outputs, columns=columns)
                    for columns in (slice(0, 40), slice(100, 300))
                    for outputs in (slice(1, 5, 3), slice(None))
                    for _ in [session.forget(0)]
                ]
            )
    for whole, wanted in zip(*found, strict=True):
        assert whole.shape == wanted.shape
        assert nmse(whole, wanted) <= rounding


def test_a_graph_whose_end_is_not_found_computes_the_whole_head(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = models / "f32.gguf"
    for name in ("l_out-0", "l_out-1", "nothing"):
        monkeypatch.setattr("valle_convert.llama.context.NORMED", name)
        with open_session(
            path, settings=Settings(own_head=True), head_rows=head_rows(GgufFile(path))
        ) as session:
            assert session._output == "logits"


def test_a_library_without_its_ggml_is_the_machines_fault(models: Path, tmp_path: Path) -> None:
    library = replace(load_library(), path=tmp_path / "libllama.so")
    with pytest.raises(EnvironmentFault, match=r"libggml-base.so of llama.cpp .* does not load"):
        open_session(models / "f32.gguf", last_norm=WEIGHTS["output_norm.weight"], library=library)


def test_the_input_scale_is_one_where_the_graph_leaves_embeddings_alone(models: Path) -> None:
    """Rows divided by the scale stand for a graph that would not multiply by it."""
    rows = {token: WEIGHTS["token_embd.weight"][token] / np.float32(16) for token in (3, 40, 77)}
    with GemmaSession(models / "f32.gguf", probe_rows=rows) as session:
        assert session.input_scale == 1.0


def test_an_input_scale_that_is_neither_is_refused(models: Path) -> None:
    rows = {token: WEIGHTS["token_embd.weight"][token] * np.float32(3) for token in (3, 40, 77)}
    with pytest.raises(EnvironmentFault, match="Cannot determine how"):
        GemmaSession(models / "f32.gguf", probe_rows=rows)


def test_a_token_table_of_zeros_is_refused(tmp_path: Path) -> None:
    table = np.zeros_like(WEIGHTS["token_embd.weight"])
    write_gemma(tmp_path / "zeros.gguf", SHAPE, {**WEIGHTS, "token_embd.weight": table})
    with pytest.raises(InputError, match="are zero"):
        open_session(tmp_path / "zeros.gguf")


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gemma(path, replace(SHAPE, n_layer=1), WEIGHTS)
    # Same length, so that the file stays whole: all keys and the architecture itself.
    (tmp_path / "other.gguf").write_bytes(path.read_bytes().replace(b"gemma", b"llama"))
    with pytest.raises(InputError, match="architecture 'llama', expected 'gemma'"):
        open_session(tmp_path / "other.gguf")


def test_a_refused_decode_says_what_llama_cpp_said_and_empties_the_sequence(models: Path) -> None:
    with open_session(models / "f32.gguf") as session:
        session.step(tokens(5), SEGMENTS, causal=True)
        # Behind the session's back the cells are gone, so that its next position leaves a gap.
        session._grow(1, 1).move(0, -1)
        with pytest.raises(EnvironmentFault, match=r"llama.cpp says: .*inconsistent"):
            session.step(tokens(1), [2], causal=True)
        assert session.length() == 0
        session.step(tokens(5), SEGMENTS, causal=True)


def test_nothing_is_printed_by_a_session(models: Path) -> None:
    program = (
        "import sys, numpy as np\nfrom pathlib import Path\n"
        "from sessions import open_session\n"
        "with open_session(Path(sys.argv[1])) as session:\n"
        "    session.step(np.ones((4, 256)), [0, 1, 0, 1], causal=False)\n"
        "    session.step(np.ones((4, 256)), [0, 1, 0, 1], causal=True)\n"
    )
    folders = os.pathsep.join(map(str, [Path(__file__).parent, PROJECT]))  # of `sessions`
    where = os.environ | {"PYTHONPATH": folders}
    child = run_python("-c", program, models / "q8_0.gguf", env=where)
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent.gguf is not a file"):
        GemmaSession(tmp_path / "absent.gguf", probe_rows={})
