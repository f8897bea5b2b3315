"""The golden checkpoints on every back end: PyTorch, and stock llama.cpp on a converted file."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from golden_models import OpenNetwork
from support import Convert, golden_checkpoint, open_reference

import valle_convert


@pytest.fixture(scope="session")
def open_network(request: pytest.FixtureRequest, converted: Convert) -> Iterator[OpenNetwork]:
    """Opens the network of a golden folder; on PyTorch, unless a test is parametrized."""
    back_end = getattr(request, "param", "pytorch")
    opened: dict[str, Any] = {}
    with ExitStack() as stack:

        def open_once(folder: str) -> Any:
            if folder not in opened:
                if back_end == "pytorch":
                    opened[folder] = open_reference(golden_checkpoint(folder))
                else:
                    network = valle_convert.open_network(converted(folder, "auto"), n_threads=1)
                    opened[folder] = stack.enter_context(network)
            return opened[folder]

        yield open_once
