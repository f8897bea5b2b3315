"""Options that `speak` and `serve` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from valle_convert.cli.options import CODEC, DECODING, GPU_LAYERS, MODEL, opt
from valle_convert.errors import InputError

if TYPE_CHECKING:
    from valle_convert.families.bundle import Bundle
    from valle_convert.families.family import AnyFamily
    from valle_convert.speech.results import SpeakOptions
    from valle_convert.speech.speaker import AnySpeaker


@dataclass(frozen=True)
class EngineOptions:
    codec: str | None = CODEC
    threads: int | None = opt(
        "Threads for llama.cpp. Default: the fastest number that --tune finds, else one per usable "
        "core; one for small models.",
        "N",
        MODEL,
        min=1,
        max=1024,
    )
    tune: Literal["auto", "off", "again"] = opt(
        "auto finds the fastest settings of llama.cpp for this file and CPU once, and keeps them; "
        "off computes exactly as verify does; again repeats the search.",
        panel=MODEL,
        default="auto",
    )
    gpu_layers: int = GPU_LAYERS
    parallel: int = opt(
        "Sentences to decode side by side in one batch of llama.cpp; needs a model with an AR. "
        "With guidance or best_of, a sentence takes several places. 0 takes the fastest number, "
        "which --tune finds (1 with --tune off and for small models).",
        "N",
        MODEL,
        default=1,
        min=0,
        max=64,
    )

    def speaker(
        self, bundle: Bundle, adapters: Sequence[str] | None = None, *, needs_codec: bool = True
    ) -> AnySpeaker:
        from valle_convert.audio import open_codec
        from valle_convert.checkpoint.lora import lora_files
        from valle_convert.llama.context import Settings
        from valle_convert.threads import in_background

        return bundle.family.speaker(
            bundle,
            # It imports torch; meanwhile, llama.cpp loads the model.
            codec=in_background(partial(open_codec, self.codec, bundle.model))
            if needs_codec
            else None,
            settings=Settings(
                n_gpu_layers=self.gpu_layers,
                n_threads=self.threads,
                n_parallel=self.parallel,
                tune=self.tune,
            ),
            adapters=lora_files(adapters),
        )


@dataclass(frozen=True)
class DecodingOptions:
    temperature: float = opt(
        "Sampling temperature of level 0; 0 takes the most likely code.", "N", DECODING, default=1.0
    )
    set_: list[str] | None = opt(
        "Other settings, such as mode=ar,top_k=50; docs/commands.md lists them.",
        "NAME=VALUE,...",
        DECODING,
    )

    def options(
        self,
        family: AnyFamily,
        foreign: Sequence[str] = (),
        **others: Any,  # noqa: ANN401
    ) -> SpeakOptions:
        """All options of speaking; refuses `foreign` ones and what the family does not use."""
        from valle_convert.decode.options import SamplingOptions
        from valle_convert.speech.results import SpeakOptions
        from valle_convert.speech.settings import parse_settings, settings, with_settings

        values = parse_settings(self.set_ or [])
        given = SpeakOptions(sampling=SamplingOptions(self.temperature), **others)
        options = with_settings(given, values)
        unused = [*foreign]
        unused += [
            f"--set {name}" for name in values if settings()[name].field not in family.speaks_with
        ]
        if unused:
            verb, them = ("does", "it") if len(unused) == 1 else ("do", "them")
            raise InputError(
                f"{', '.join(unused)} {verb} not apply to {family.title}; leave {them} out."
            )
        return options
