"""What a VALL-E model is: its sizes and switches, its input tables, its heads.

    checkpoint -> families.describe -> Description (Model + where every tensor goes)
    GGUF keys  -> gguf_file.keys.read_model -> Model

`Model` is the same whether it came from a checkpoint or from a converted file. The
writer, the session, the reference and the verifier all read it; none of them keeps a
second list of tables or heads.
"""

from __future__ import annotations

from valle_convert.model.spec import Codec, Head, Model, ModelConfig, Table

__all__ = ["Codec", "Head", "Model", "ModelConfig", "Table"]
