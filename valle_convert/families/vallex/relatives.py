"""Which checkpoints are of VALL-E X, and which are of a relative that is refused by name."""

from __future__ import annotations

import re

from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint.names import AMPHION, ICEFALL
from valle_convert.errors import UnsupportedModelError
from valle_convert.model.trainer import SUPPORTED

_SUPPORTED = "supported of this trainer's models is VALL-E X (Plachtaa/VALL-E-X)"
#: A name that a relative has, and what it is.
_RELATIVES = (
    (
        r"(ar|nar)_decoder\.layers\.\d+\.(multihead_attn|norm3)\..*",
        "is a VALL-F, whose decoders attend to the text across ({}): no graph of llama.cpp does",
    ),
    (
        r"(ar|nar)_(text|audio)_prenet\..*",
        "has a prenet ({}) between tables and decoder, which llama.cpp cannot compute",
    ),
)


def refuse_relatives(checkpoint: Checkpoint) -> None:
    """Refuse by name the models that share the trainer or the names, and compute something else."""
    if is_amphion(checkpoint):
        raise UnsupportedModelError(
            f"{checkpoint.path} is one of the two files of Amphion's VALL-E v2 (it has "
            f"{_amphion_name(checkpoint)}), a LLaMA with one vocabulary and another codec "
            f"(SpeechTokenizer), which is not converted; supported are VALL-E X and {SUPPORTED}."
        )
    names, config = checkpoint.tensors.specs, checkpoint.config
    others = [
        words.format(name)
        for pattern, words in _RELATIVES
        for name in names
        if re.fullmatch(pattern, name)
    ]
    languages = [f"{net}_language_embedding.word_embeddings.weight" for net in ("ar", "nar")]
    normed = any(name.startswith("ar_decoder.norm.") for name in names)
    if others:
        why = others[0]
    elif not any(name in names for name in languages):
        why = (
            "is a VALL-E of lifeiteng/vall-e or a descendant of it: it has no language tables "
            f"({languages[0]}), and its symbols come from a table beside the file"
        )
    elif config.get("norm_first") is False or not normed:
        sign = "norm_first is false" if normed else "there is no ar_decoder.norm"
        why = f"normalizes after each layer, not before ({sign})"
    elif config.get("prefix_mode", 1) != 1:
        why = (
            f"was trained with prefix_mode {config['prefix_mode']!r}, in which the NAR sees other "
            "prompts than in prefix_mode 1"
        )
    else:
        return
    raise UnsupportedModelError(f"{checkpoint.path} {why}; {_SUPPORTED}.")


def is_icefall(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is one of VALL-E X or of a relative, by the names of its tensors."""
    return any(ICEFALL.fullmatch(name) for name in checkpoint.tensors.specs)


def is_amphion(checkpoint: Checkpoint) -> bool:
    """Whether it is the one relative whose names are not those of this trainer."""
    return checkpoint.config.get("version") is None and _amphion_name(checkpoint) is not None


def _amphion_name(checkpoint: Checkpoint) -> str | None:
    return next((name for name in checkpoint.tensors.specs if AMPHION.fullmatch(name)), None)
