"""The plan that a given file should have come from.

Nearly all of a plan follows from the checkpoint. The name of an unknown codec, which a user could
choose without changing what the file computes, is taken from the file.
"""

from __future__ import annotations

from pathlib import Path

from valle_convert.checkpoint import Checkpoint
from valle_convert.gguf_file.plan import GgufPlan, plan_gguf
from valle_convert.gguf_file.read import GgufFile
from valle_convert.model.spec import CODECS, UNKNOWN_CODEC


def plan_like(
    file: GgufFile,
    checkpoint: Checkpoint,
    *,
    tokenizer: Path | None = None,
    codec: str | None = None,
) -> GgufPlan:
    """Plan the conversion of a checkpoint with the choices that the file shows.

    Raises:
        InputError: the checkpoint or the tokenizer cannot be converted.
    """
    made = plan_gguf(checkpoint, tokenizer=tokenizer, codec=codec)
    recorded = file.keys.get("valle.codec.name")
    known = {known_codec.name for known_codec in CODECS.values()}
    if codec is None and made.model.config.codec is UNKNOWN_CODEC and recorded in known:
        return plan_gguf(checkpoint, tokenizer=tokenizer, codec=recorded)
    return made
