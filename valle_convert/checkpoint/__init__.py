"""A path becomes a `Checkpoint`: named tensors, read one by one, and what is known about them.

    path -> container (by content) -> TensorSource -> LoRA merged -> Checkpoint

Each container format is one file. A checkpoint is untrusted: no container runs code from it, and
every fault in one is an `InputError`.
"""

from valle_convert.checkpoint.read import Checkpoint, read_checkpoint
from valle_convert.checkpoint.source import TensorSource, TensorSpec

__all__ = ["Checkpoint", "TensorSource", "TensorSpec", "read_checkpoint"]
