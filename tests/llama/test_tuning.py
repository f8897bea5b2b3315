"""The fastest settings are found on the loaded file, kept, and never less exact than its type."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sessions import open_session

from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.types import GGML_TYPES
from valle_convert.llama.context import Settings
from valle_convert.llama.gemma import GemmaSession
from valle_convert.llama.tiny_gemma import GemmaShape, random_weights, write_gemma
from valle_convert.llama.tuning import (
    Trial,
    Tune,
    Tuned,
    choose,
    try_settings,
    tuned_settings,
)
from valle_convert.network.probe import read_probe_rows
from valle_convert.network.tuned import head_rows, rounding_of, tuned_for

SHAPE = GemmaShape(n_embd=64, n_head=4, n_head_kv=4, n_layer=2, n_ff=96, n_vocab=80)
MODES: tuple[Tune, ...] = ("off", "auto")
EXACT, REPACKED, F16 = Settings(), Settings(repack=False), Settings("f16")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tuning") / "tiny.gguf"
    write_gemma(path, SHAPE, random_weights(SHAPE, seed=0))
    return path


class Opened:
    """Opens sessions and counts them."""

    def __init__(self, path: Path) -> None:
        self.file, self.n = GgufFile(path), 0
        self.rows = read_probe_rows(self.file)

    def __call__(self, how: Settings) -> GemmaSession:
        self.n += 1
        rows = head_rows(self.file)
        return open_session(self.file.path, settings=how, n_threads=1, head_rows=rows)


def test_settings_are_found_once_and_again_where_that_is_asked_for(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    opened = Opened(path)

    rows = np.stack(list(opened.rows.values()))

    def tuned(mode: Tune) -> Tuned:
        base = Settings(own_head=True)
        return tuned_settings(opened, base, rows, rounding=1e-2, about=["tiny"], mode=mode)

    first = tuned("auto")
    n = opened.n
    assert n > 1
    assert first.passes.own_head
    assert tuned("auto") == first
    assert opened.n == n
    tuned("again")
    assert opened.n == 2 * n
    (kept,) = (tmp_path / "valle-convert").glob("tuned-*.json")
    for damage in ("", "[]", '{"passes": {}}', json.dumps({"passes": {"x": 1}, "steps": {}})):
        kept.write_text(damage)
        tuned("auto")
        assert json.loads(kept.read_text())["passes"]["own_head"]


def test_a_small_model_is_not_tuned_and_off_is_exact(path: Path) -> None:
    opened = Opened(path)
    both = [tuned_for(opened.file, opened, opened.rows, None, mode) for mode in MODES]
    assert both == [Tuned(EXACT, EXACT)] * 2
    assert opened.n == 0


def test_a_type_costs_what_its_rounding_does() -> None:
    costs = [rounding_of(GGML_TYPES[name]) for name in ("F32", "F16", "BF16", "Q8_0", "Q4_K")]
    assert costs[0] == 0
    assert costs == sorted(costs)
    assert costs[1] > 1e-9
    assert costs[-1] < 0.1


def test_exact_files_keep_exact_settings(path: Path) -> None:
    """A cache in f16 costs more than a type that loses nothing, and less than a coarse one."""
    opened = Opened(path)
    rows = np.stack(list(opened.rows.values()))
    for rounding, allowed in ((1e-15, {"f32"}), (1e-2, {"f32", "f16"})):
        trials = try_settings(opened, Settings(), rows, rounding)
        assert {one.settings.cache_type for one in trials if one.is_exact_enough} == allowed


@pytest.mark.parametrize(
    ("others", "passes", "steps"),
    [
        ([], EXACT, EXACT),
        ([Trial(REPACKED, (0.5, 2.0), True)], REPACKED, EXACT),
        ([Trial(F16, (0.5, 0.5), False), Trial(REPACKED, (0.7, 0.7), True)], REPACKED, REPACKED),
        ([Trial(F16, (0.99, 0.5), True)], EXACT, F16),
    ],
)
def test_the_fastest_that_is_exact_enough_is_taken(
    others: list[Trial], passes: Settings, steps: Settings
) -> None:
    assert choose([Trial(EXACT, (1.0, 1.0), True), *others]) == Tuned(passes, steps)
