"""Versions 5 and 6 of the e-c-k-e-r/vall-e family: one `gemma` model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint.lora import LoraFile
from valle_convert.families.family import Choices
from valle_convert.families.gemma import PART, GemmaFamily
from valle_convert.families.v5 import facts
from valle_convert.gguf_file.keys import SOURCE_FORMAT_KEY
from valle_convert.gguf_file.read import GgufFile
from valle_convert.model.description import Contents, Description
from valle_convert.model.spec import Head, Model, Table
from valle_convert.network.protocol import Network

if TYPE_CHECKING:
    from valle_convert.families.bundle import Bundle


class VersionFive(GemmaFamily[Model, Network]):
    name = ""
    title = "VALL-E"
    abilities = MappingProxyType(
        {
            **GemmaFamily.abilities,
            "listen": "listen",
            "lora": "adapter:write_lora",
            "repair": "old:read_old",
            "utterances": "recordings:fill_folder",
            "transcribe": "speech:VersionFiveSpeaker.transcribe",
            "vc": "speech:VersionFiveSpeaker.answer",
            "ns": "speech:VersionFiveSpeaker.answer",
            "sr": "speech:VersionFiveSpeaker.answer",
        }
    )
    speaks_with = frozenset(
        "mode language sampling nar_sampling repetition_penalty repetition_decay "
        "guidance_strength guidance_rescale max_steps length_penalty max_seconds duration_padding "
        "prompt_seconds context_history seed".split()
    )

    def claims(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.config.get("version") in facts.VERSIONS

    def describe(self, checkpoint: Checkpoint, choices: Choices) -> Description[Model]:
        return facts.describe(checkpoint, choices.codec)

    def contents_of(self, model: Model) -> Mapping[str, Contents]:
        has_biases = any(head.bias is not None for head in model.heads)
        return {PART: facts.contents_of(model, has_biases=has_biases)}

    def refusal(self, file: GgufFile) -> str:
        from valle_convert.families.v5.old import is_old, why_wrong

        return why_wrong(file.path) if is_old(file) else ""

    def parts(self, main: GgufFile) -> tuple[str, ...]:
        main.refuse_part()
        return (PART,)

    def comparable(self, checkpoint: Checkpoint, bundle: Bundle) -> Checkpoint:
        from valle_convert.families.v5.old import as_repaired

        made_of = bundle.main.keys.get(SOURCE_FORMAT_KEY)
        if made_of in (None, checkpoint.origin.get("format")):
            return checkpoint
        return as_repaired(checkpoint, bundle.main)

    def open_adapters(
        self, adapters: Sequence[LoraFile], base: Bundle | Checkpoint
    ) -> Sequence[Any]:
        from valle_convert.families.v5.adapter import Adapter, AdapterBase

        if not adapters:
            return []
        fits = AdapterBase.of(base)
        return [Adapter(one, fits) for one in adapters]

    def summary(self, model: Model) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        sizes, behaviour = super().summary(model)
        sums = {
            "prompt levels summed": model.config.sum_prompt,
            "response levels summed": model.config.sum_response,
        }
        return sizes, {**behaviour, **sums}

    def tables_and_heads(
        self, model: Model
    ) -> Iterator[tuple[str, tuple[Table, ...], tuple[Head, ...]]]:
        yield PART, model.tables, model.heads


FAMILY = VersionFive()
