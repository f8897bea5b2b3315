"""The golden codec, and one of the real architecture with random weights, in every kind of file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from audio.small_codec import save_with_codebooks
from encodec_files import GOLDEN_ENCODEC
from transformers import EncodecConfig, EncodecModel


@pytest.fixture(scope="session")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers saves it: the architecture of facebook/encodec_24khz."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("full") / "encodec_24khz"
    return save_with_codebooks(EncodecModel(EncodecConfig()), folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the golden folder, to be spoiled."""
    return Path(shutil.copytree(GOLDEN_ENCODEC / "hf", tmp_path / "codec"))


@pytest.fixture
def configured(folder: Path) -> Callable[..., Path]:
    """`configured(key=value)`: the golden folder with other entries in its config.json."""

    def change(**changes: Any) -> Path:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return folder

    return change
