"""Recognizes checkpoints of VALL-E X, and relatives that are rejected by name."""

import re

from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint.names import AMPHION, ICEFALL
from valle_convert.errors import UnsupportedModelError
from valle_convert.model.trainer import SUPPORTED

_SUPPORTED = "of this trainer's models, only VALL-E X (Plachtaa/VALL-E-X) is supported"
#: A name in a relative, and its meaning.
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
    """Reject the models that share the trainer or the names, but compute something else."""
    if is_amphion(checkpoint):
        raise UnsupportedModelError(
            f"{checkpoint.path} is one of the two files of Amphion's VALL-E v2 (it has "
            f"{_amphion_name(checkpoint)}), a LLaMA with one vocabulary and another codec "
            f"(SpeechTokenizer); supported are VALL-E X and {SUPPORTED}."
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
            "is a VALL-E of lifeiteng/vall-e or a descendant: it has no language tables "
            f"({languages[0]}), and its symbols come from a separate table"
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
    """Whether the tensor names are those of VALL-E X or a relative."""
    return any(ICEFALL.fullmatch(name) for name in checkpoint.tensors.specs)


def is_amphion(checkpoint: Checkpoint) -> bool:
    """Whether it is the one relative with names of its own."""
    return checkpoint.config.get("version") is None and _amphion_name(checkpoint) is not None


def _amphion_name(checkpoint: Checkpoint) -> str | None:
    return next((name for name in checkpoint.tensors.specs if AMPHION.fullmatch(name)), None)
