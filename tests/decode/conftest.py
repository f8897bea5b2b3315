"""The golden checkpoints on every back end: PyTorch, and stock llama.cpp on a converted file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch
from golden_models import OpenNetwork, open_reference
from support import golden_checkpoint

from valle_convert.api import plan_conversion, write_gguf
from valle_convert.families.v5.on_llama import GgufNetwork
from valle_convert.network.protocol import Network


@pytest.fixture(scope="session")
def open_network(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OpenNetwork]:
    """Opens the network of a golden folder; on PyTorch, unless a test is parametrized."""
    back_end = getattr(request, "param", "pytorch")
    opened: dict[str, Network] = {}
    with ExitStack() as stack:

        def open_once(folder: str) -> Network:
            if folder not in opened:
                if back_end == "pytorch":
                    opened[folder] = open_reference(folder)
                else:
                    file = tmp_path_factory.mktemp(folder) / "model.gguf"
                    write_gguf(plan_conversion(golden_checkpoint(folder)), file)
                    opened[folder] = stack.enter_context(GgufNetwork(file))
            return opened[folder]

        yield open_once


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models are slower on several threads, and very slow where workers share the cores."""
    torch.set_num_threads(1)
