"""Which file of this package understands which version of checkpoint.

A new family is one module with `describe(checkpoint, codec) -> Description` and a row here.
"""

from __future__ import annotations

from collections.abc import Callable

from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint.plain_values import whole
from valle_convert.errors import InputError, UnsupportedModelError
from valle_convert.model import v5
from valle_convert.model.description import Description
from valle_convert.model.spec import Codec
from valle_convert.model.vallex import is_vallex, refuse_amphion

_FAMILIES: dict[int, Callable[[Checkpoint, Codec | None], Description]] = {
    5: v5.describe,
    6: v5.describe,
}
_SUPPORTED = "supported are " + " and ".join(str(version) for version in _FAMILIES)


def describe(checkpoint: Checkpoint, *, codec: Codec | None = None) -> Description:
    """Understand a checkpoint.

    Args:
        checkpoint: an open checkpoint.
        codec: the audio codec, where the user gives it; else it is told by levels and codes.

    Raises:
        UnsupportedModelError: the version, architecture or a switch is refused by name.
        InputError: config and weights disagree, or tensors are missing or unexpected.
    """
    refuse_amphion(checkpoint)
    if is_vallex(checkpoint):
        raise UnsupportedModelError(
            f"{checkpoint.path} is a checkpoint of VALL-E X or a relative of it, of which several "
            f"files are made, and this takes models of one file; {_SUPPORTED}."
        )
    said = checkpoint.config.get("version", 5)  # as the training project has it
    version = whole(said)
    if version is None:
        raise InputError(
            f"{checkpoint.path}: the config ({checkpoint.config_source}) gives version {said!r},"
            f" where a whole number is expected ({_SUPPORTED}); add it with --config."
        )
    family = _FAMILIES.get(version)
    if family is None:
        if version == 7:
            kind = "version 7 (the nemo family, all codebooks at once)"
        elif version < 5:
            kind = f"version {version} (older than the layout with one head a level)"
        else:
            kind = f"version {version}, which is not known"
        raise UnsupportedModelError(f"{checkpoint.path} is a checkpoint of {kind}; {_SUPPORTED}.")
    description = family(checkpoint, codec)
    _check_words(checkpoint, description)
    return description


def _check_words(checkpoint: Checkpoint, description: Description) -> None:
    """Where rows have names of their own, hold them against those that go by the numbers."""
    model = description.model
    for table, known in (
        ("langs_emb.weight", model.languages),
        ("tasks_emb.weight", model.tasks),
        ("tones_emb.weight", model.tones),
    ):
        words = checkpoint.words.get(table, known)
        for row, (word, expected) in enumerate(zip(words, known, strict=False)):
            if word != expected and not expected.startswith("unnamed-"):
                raise InputError(
                    f"{checkpoint.path}: row {row} of {table} is called {word!r:.40}, where "
                    f"{expected!r} is expected; a model with another numbering cannot be converted."
                )
