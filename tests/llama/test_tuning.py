"""The fastest settings are found on the loaded file, kept, and never less exact than its type."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.types import GGML_TYPES
from valle_convert.llama.context import LlamaModel, Settings, Tune
from valle_convert.llama.library import load_library
from valle_convert.llama.tiny import GemmaShape, random_gemma, write_gemma
from valle_convert.llama.tuning import (
    Fastest,
    FileFacts,
    choose,
    exactness,
    fastest_number,
    kept_settings,
    tuned_settings,
)
from valle_convert.network.tuned import read_probe_rows, rounding_of

SHAPE = GemmaShape(n_embd=64, n_head=4, n_head_kv=4, n_layer=2, n_ff=96, n_vocab=80)
EXACT, REPACKED, F16 = Settings(), Settings(repack=False), Settings("f16")
QUIET, BUSY = 10.0, -10.0


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tuning") / "tiny.gguf"
    write_gemma(path, SHAPE, random_gemma(SHAPE, seed=0))
    return path


def rows_of(path: Path) -> np.ndarray:
    return np.stack(list(read_probe_rows(GgufFile(path)).values()))


def test_settings_are_found_once_and_again_where_that_is_asked_for(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    facts = FileFacts("F32", 1, SHAPE.n_layer, SHAPE.n_embd)

    def tuned(mode: Tune, others: float = QUIET) -> Fastest | None:
        return tuned_settings([path], facts, EXACT, rows_of(path), 1e-2, mode, others)

    assert tuned("auto", BUSY) is None
    assert kept_settings() == []
    first = tuned("auto")
    (kept,) = (tmp_path / "valle-convert").glob("tuned-*.json")
    assert tuned("auto", BUSY) == first
    assert kept_settings() == [first]
    assert tuned("again", BUSY) is None
    assert first
    assert first.n_parallel in (1, 2, 4, 8)
    written = json.loads(kept.read_text())
    wrong = ({"steps": {"x": 1}}, {"n_parallel": 0}, {"n_parallel": 1 << 30})
    damaged = (json.dumps([written[0], written[1] | one]) for one in wrong)
    for damage in ("", "[]", '{"passes": {}}', *damaged):
        kept.write_text(damage)
        assert kept_settings() == []
    assert tuned("auto") is not None
    assert len(kept_settings()) == 1


def test_a_type_costs_what_its_rounding_does() -> None:
    costs = [rounding_of(GGML_TYPES[name]) for name in ("F32", "F16", "BF16", "Q8_0", "Q4_K")]
    assert costs[0] == 0
    assert costs == sorted(costs)
    assert costs[1] > 1e-9
    assert costs[-1] < 0.1


@pytest.mark.parametrize(("rounding", "is_allowed"), [(1e-15, False), (1e-2, True)])
def test_a_cache_in_f16_is_too_coarse_for_exact_files_only(
    path: Path, rounding: float, is_allowed: bool
) -> None:
    with LlamaModel(load_library(), path) as model:
        is_exact_enough = exactness({True: model}, EXACT, rows_of(path), rounding)
        assert is_exact_enough(EXACT)
        assert is_exact_enough(F16) == is_allowed


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ({}, EXACT),
        ({REPACKED: 0.5}, REPACKED),
        ({F16: 0.5, REPACKED: 0.7}, REPACKED),  # f16 is not exact enough
        ({F16: 0.5, REPACKED: 0.99}, EXACT),
    ],
)
def test_the_fastest_that_is_exact_enough_is_taken(
    others: Mapping[Settings, float], chosen: Settings
) -> None:
    times = {EXACT: np.array([9.0, 1.0])}
    times |= {how: np.array([9.0, seconds]) for how, seconds in others.items()}
    found = choose(times, 1, lambda how: how.cache_type == "f32")
    assert (found.settings, found.exact_seconds) == (chosen, 1.0)
    assert found.seconds == others.get(chosen, 1.0)


@pytest.mark.parametrize(
    ("seconds", "number"),
    [
        ({1: 1.0}, 1),
        ({1: 1.0, 2: 1.99, 4: 4.2, 8: 9.0}, 1),
        ({1: 1.0, 2: 1.5, 4: 2.2, 8: 3.0}, 8),
        ({1: 1.0, 2: 2.5, 4: 2.2, 8: 4.39}, 4),  # 8 gains too little
    ],
)
def test_more_sequences_are_taken_where_each_gets_faster(
    seconds: Mapping[int, float], number: int
) -> None:
    assert fastest_number(seconds) == number
