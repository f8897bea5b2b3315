"""Version 7 of the e-c-k-e-r/vall-e family: all codebooks at once, a `gemma` between networks."""

from collections.abc import Iterator, Mapping
from typing import Any

from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint.plain_values import whole
from valle_convert.families.family import Choices
from valle_convert.families.gemma import PART, GemmaFamily
from valle_convert.families.v7 import facts, files
from valle_convert.families.v7.composed import AllLevelsNetwork
from valle_convert.families.v7.facts import AUDIO, VersionSevenModel
from valle_convert.gguf_file.keys import FAMILY_KEY, PART_KEY
from valle_convert.gguf_file.read import GgufFile
from valle_convert.model.description import Contents, Description
from valle_convert.model.spec import Head, Table


class VersionSeven(GemmaFamily[VersionSevenModel, AllLevelsNetwork]):
    name = files.FAMILY
    title = "VALL-E of version 7"
    speaks_with = frozenset(
        "language sampling guidance_strength guidance_rescale max_steps max_seconds "
        "duration_padding prompt_seconds context_history seed".split()
    )

    def claims(self, checkpoint: Checkpoint) -> bool:
        return whole(checkpoint.config.get("version")) == facts.VERSION

    def describe(self, checkpoint: Checkpoint, choices: Choices) -> Description[VersionSevenModel]:
        return facts.describe(checkpoint, choices.codec)

    def contents_of(self, model: VersionSevenModel) -> Mapping[str, Contents]:
        return facts.contents_of(model)

    def parts(self, main: GgufFile) -> tuple[str, ...]:
        self.check_part(main, PART)
        return (PART, AUDIO)

    def part_keys(self, part: str) -> Mapping[str, Any]:
        return {FAMILY_KEY: self.name, PART_KEY: part}

    def summary(self, model: VersionSevenModel) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        config = model.config
        sizes, behaviour = super().summary(model)
        widths = {
            "encoders' feed-forward width": config.n_ff_encoder,
            "decoders' feed-forward width": config.n_ff_decoder,
        }
        is_one_number = model.audio.head("length").n_rows == 1
        switches = {
            "encoders normed": config.encoder_norm,
            "levels weighted": config.level_weights,
            "norms": "one a level" if config.level_norm else "one for all levels",
            "duration": "in seconds" if is_one_number else "digit by digit",
        }
        return {**sizes, **widths}, {**behaviour, **switches}

    def tables_and_heads(
        self, model: VersionSevenModel
    ) -> Iterator[tuple[str, tuple[Table, ...], tuple[Head, ...]]]:
        yield PART, model.tables, model.heads
        yield AUDIO, model.audio.tables, model.audio.heads


FAMILY = VersionSeven()
