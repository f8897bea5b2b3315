"""One server of the miniature for all that asks it as it is."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from serve.servers import MINIATURE, serving

from valle_convert.families.bundle import Bundle, open_bundle


@pytest.fixture(scope="session")
def miniature(converted: Callable[[Path, str], Path]) -> Bundle:
    return open_bundle(converted(MINIATURE / "miniature.sft", "q8_0"))


@pytest.fixture(scope="session")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voices")
    for name in ("plain", "deep"):
        shutil.copy(MINIATURE / f"voice-{name}.flac", folder / f"{name}.flac")
    (folder / "names.json").write_text(json.dumps({"default": "plain", "onyx": "deep"}))
    return folder


@pytest.fixture(scope="session")
def client(miniature: Bundle, voices: Path) -> Iterator[httpx2.Client]:
    with serving(miniature, voices) as opened:
        yield opened
