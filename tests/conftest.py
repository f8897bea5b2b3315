"""What all tests share: the golden checkpoints, files made from them, the command line."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from hypothesis import settings
from make_checkpoint import Shape, make_checkpoint
from support import Cli, Convert, Result, contents, golden_checkpoint

if TYPE_CHECKING:
    from checkpoint.small_hub import SmallHub
    from playwright.sync_api import Browser

# The networks of the tests are tiny: more threads than one only wait for each other, and spin. So
# each worker, with the programs that it starts, keeps to a core. torch reads the variables when it
# is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

# Two cores are shared with other workers: no deadline by the clock.
settings.register_profile("valle", deadline=None, max_examples=60)
settings.load_profile("valle")


#: These files take longest, so they come first: a worker that gets one at the end works alone.
LONGEST = (
    "test_docs",
    "test_quantize_listen",
    "test_ci",
    "test_sweep",
    "test_damage",
    "test_speech",
    "test_evaluate",
    "test_quantize_run",
    "test_merge",
    "test_side_by_side",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = {path.stem for path in Path(__file__).parent.rglob("test_*.py")}
    assert names.issuperset(LONGEST), names
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture(autouse=True)
def few_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts compare few strings: the 100,000 that users get take seconds."""
    from valle_convert.families import families

    monkeypatch.setattr("valle_convert.verify.run.N_TEXTS_QUICK", 200)
    for family in families():
        monkeypatch.setattr(type(family), "n_texts", 1000)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `valle-convert` in this process; arguments are turned into strings."""
    from valle_convert.cli import main

    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["valle-convert", *map(str, arguments)])
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            # A program ends here, and this process goes on.
            for one, handler in handlers.items():
                signal.signal(one, handler)
        captured = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Convert:
    """`converted(path or golden name, out type)`: a converted checkpoint, made once a session."""
    from valle_convert import Choices, plan_conversion, write_gguf

    @cache
    def convert(checkpoint: str | Path, out_type: str) -> Path:
        folder = tmp_path_factory.mktemp("converted")
        path = folder / f"{Path(checkpoint).stem}-{out_type}.gguf"
        if isinstance(checkpoint, str):
            checkpoint = golden_checkpoint(checkpoint)
        write_gguf(plan_conversion(checkpoint, Choices(out_type)), path)
        return path

    return convert


@pytest.fixture
def gguf(converted: Convert) -> Path:
    """The golden checkpoint that is like the published model, in Q8_0."""
    return converted("ar-nar-len", "q8_0")


@pytest.fixture(scope="session")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An EnCodec of the golden checkpoints' codebook size."""
    from audio.small_codec import save_codec

    return save_codec(tmp_path_factory.mktemp("encodec"), codebook_size=64)


@pytest.fixture(scope="session")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stereo recording at another rate than the codec's, half a second long."""
    path = tmp_path_factory.mktemp("voice") / "prompt.flac"
    samples = 0.1 * np.random.default_rng(0).standard_normal((22_050, 2))
    soundfile.write(path, samples, 44_100)
    return path


@pytest.fixture
def voice_file(tmp_path: Path) -> Path:
    """A voice of VALL-E X as its own project writes them: it says HEARD."""
    from vallex_golden import write_voice

    return write_voice(tmp_path / "voice.npz")


@pytest.fixture
def small_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """`small_checkpoint(name="x.sft", dtype="f32", **Shape)`: a seeded random checkpoint."""

    def make(name: str = "small.sft", dtype: str = "f32", **sizes: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make_checkpoint(path, Shape(**sizes), dtype=dtype)  # type: ignore[arg-type]
        return path

    return make


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["SmallHub"]:
    """The small hub, and huggingface_hub with a cache of the test's own, pointed to it."""
    from checkpoint.small_hub import constants, point_to, small_hub

    with small_hub() as one:
        point_to(one.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield one


@pytest.fixture
def untouched(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """A function that fails if the test's folder has other files, or other bytes, than before it
    was first called; it is called again at the end."""
    before: dict[str, bytes] | None = None

    def check() -> None:
        nonlocal before
        if before is None:
            before = contents(tmp_path)
        assert contents(tmp_path) == before

    yield check
    if before is not None:
        check()


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """The Chromium of this machine."""
    found = [os.environ.get("CHROMIUM"), *map(shutil.which, ("chromium", "google-chrome"))]
    programs = [one for one in found if one]
    if not programs:
        pytest.skip("no Chromium here: `make browser`, or name one in $CHROMIUM")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=programs[0],
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--mute-audio"],
        )
        yield chromium
        chromium.close()
