"""An EnCodec of the real architecture with small random weights, saved as transformers does."""

from pathlib import Path

import pytest
from small_codec import save_codec

from valle_convert.audio import EncodecCodec


@pytest.fixture(scope="session")
def codec_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_codec(tmp_path_factory.mktemp("encodec"), codebook_size=1024)


@pytest.fixture(scope="session")
def codec(codec_folder: Path) -> EncodecCodec:
    return EncodecCodec(codec_folder)
