"""Version 7 of the e-c-k-e-r/vall-e family: all codebooks at once, a `gemma` between networks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint.lora import LoraFile
from valle_convert.checkpoint.plain_values import whole
from valle_convert.checkpoint.source import NamedTensors
from valle_convert.families.family import Case, Choices, Family, Speed, Unit
from valle_convert.families.v7 import facts, files
from valle_convert.families.v7.facts import AUDIO, PART, VersionSevenModel
from valle_convert.gguf_file.keys import FAMILY_KEY
from valle_convert.gguf_file.loadable import dangers
from valle_convert.gguf_file.plan import FileKeys
from valle_convert.gguf_file.read import GgufFile
from valle_convert.model.description import Description
from valle_convert.model.spec import CODECS, UNKNOWN_CODEC, Head, Table, codec_named
from valle_convert.tokenizer.choose import TokenizerChoice, TokenizerFile, choose_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from valle_convert.audio.codec import AudioCodec
    from valle_convert.families.bundle import Bundle
    from valle_convert.families.v7.composed import AllLevelsNetwork
    from valle_convert.families.v7.speech import VersionSevenSpeaker
    from valle_convert.families.v7.trials import MaskedUtterance
    from valle_convert.llama.context import Settings
    from valle_convert.llama.tuning import Tune
    from valle_convert.network.arithmetic import Arithmetic


class VersionSeven(Family[VersionSevenModel, "AllLevelsNetwork", "MaskedUtterance"]):
    """Version 7; see the modules of this folder."""

    name = files.FAMILY
    title = "VALL-E of version 7"
    reads = frozenset({"out_type", "tokenizer", "codec", "metadata"})
    speaks_with = frozenset(
        "language sampling guidance max_steps max_seconds duration_padding prompt_seconds "
        "context_history seed".split()
    )
    needs = ("speech",)
    example_arrays = "phonemes, response, prompt and language"

    def claims(self, checkpoint: Checkpoint) -> bool:
        return whole(checkpoint.config.get("version")) == facts.VERSION

    def describe(self, checkpoint: Checkpoint, choices: Choices) -> Description[VersionSevenModel]:
        codec = None if choices.codec is None else codec_named(choices.codec)
        return facts.describe(checkpoint, codec)

    def tokenizer(
        self,
        checkpoint: Checkpoint,
        description: Description[VersionSevenModel],
        choices: Choices,
    ) -> TokenizerChoice:
        return choose_tokenizer(
            choices.tokenizer,
            checkpoint.path,
            checkpoint.symmap,
            description.model.table("phonemes").n_rows,
            carried=checkpoint.vocabulary,
        )

    def keys(
        self,
        checkpoint: Checkpoint,
        description: Description[VersionSevenModel],
        part: str,
        tokenizer: TokenizerChoice,
    ) -> FileKeys:
        return files.file_keys(checkpoint, description, part, tokenizer)

    def set_salt(self, description: Description[VersionSevenModel]) -> str:
        del description
        return ""

    def claims_file(self, file: GgufFile) -> bool:
        return file.keys.get(FAMILY_KEY) == self.name

    def parts(self, main: GgufFile) -> tuple[str, ...]:
        files.check_part(main, PART)
        return (PART, AUDIO)

    def check_part(self, file: GgufFile, part: str) -> None:
        files.check_part(file, part)

    def read_model(self, files: Mapping[str, GgufFile]) -> VersionSevenModel:
        from valle_convert.families.v7.files import read_model

        return read_model(files)

    def dangers(self, files: Mapping[str, GgufFile]) -> Iterator[str]:
        return dangers(files[PART])

    def differences(self, planned: VersionSevenModel, found: VersionSevenModel) -> list[str]:
        def places(model: VersionSevenModel) -> list[tuple[str, int, int]]:
            return [(head.name, head.first_row, head.n_rows) for head in model.audio.heads]

        same = {
            "sizes and switches": planned.config == found.config,
            "tables": (planned.tables, planned.audio.tables) == (found.tables, found.audio.tables),
            "heads": places(planned) == places(found),
        }
        return [f"other {words}" for words, is_same in same.items() if not is_same]

    def choices_of(self, bundle: Bundle, checkpoint: Checkpoint, given: Choices) -> Choices:
        recorded = bundle.model.codec.name
        known = {codec.name for codec in CODECS.values()}
        if given.codec is None and recorded in known:
            found = facts.describe(checkpoint).model.codec
            return replace(given, codec=recorded) if found is UNKNOWN_CODEC else given
        return given

    def units(self, parts: Sequence[str]) -> tuple[Unit, ...]:
        return tuple(Unit(part) for part in parts)

    def reference(
        self,
        tensors: NamedTensors,
        description: Description[VersionSevenModel],
        *,
        arithmetic: Arithmetic | None = None,
        adapters: Sequence[Any] = (),
        folded: bool = False,
    ) -> AllLevelsNetwork:
        from valle_convert.families.v7.reference import VersionSevenReference
        from valle_convert.network.arithmetic import EXACT

        del adapters, folded
        return VersionSevenReference(tensors, description.model, arithmetic=arithmetic or EXACT)

    def open(
        self,
        bundle: Bundle,
        *,
        n_threads: int | None = None,
        settings: Settings | None = None,
        tune: Tune = "off",
        adapters: Sequence[LoraFile] = (),
    ) -> AllLevelsNetwork:
        from valle_convert.families.v7.on_llama import VersionSevenGguf

        self.open_adapters(adapters, bundle)
        return VersionSevenGguf(
            bundle.files, bundle.model, n_threads=n_threads, settings=settings, tune=tune
        )

    def arithmetic(self, bundle: Bundle) -> Arithmetic:
        from valle_convert.network.arithmetic import Arithmetic, gelu_from_table, input_rounding

        types = {name: tensor.ggml_type.name for name, tensor in bundle.main.tensors.items()}
        return Arithmetic(gelu_from_table, input_rounding({PART: types}))

    def counted(self, bundle: Bundle) -> Mapping[str, tuple[object, object]]:
        from valle_convert.llama.gemma import GemmaSession
        from valle_convert.network.probe import read_probe_rows
        from valle_convert.tokenizer.compiled import TOKENS_KEY

        config, file = bundle.model.config, bundle.main
        with GemmaSession(file.path, n_ctx=8, probe_rows=read_probe_rows(file)) as session:
            return {
                "widths": (session.n_embd, config.n_embd),
                "layers": (session.n_layer, config.n_layer),
                "rows": (session.n_vocab, len(file.keys[TOKENS_KEY])),
                "weights": (
                    session.n_params,
                    sum(tensor.n_elements for tensor in file.tensors.values()),
                ),
            }

    def draw(self, model: VersionSevenModel, n: int, seed: int) -> Iterable[MaskedUtterance]:
        from valle_convert.families.v7.trials import utterances

        return utterances(model, n, seed=seed)

    def read_example(
        self, path: Path, model: VersionSevenModel, number: int, seed: int
    ) -> MaskedUtterance:
        from valle_convert.families.v7.trials import read_utterance

        return read_utterance(path, model, seed=(seed, number))

    def said_in(self, example: MaskedUtterance) -> NDArray[Any]:
        return example.condition.phonemes

    def cases(
        self, model: VersionSevenModel, example: MaskedUtterance
    ) -> Iterator[Case[AllLevelsNetwork]]:
        from valle_convert.families.v7.trials import cases

        return cases(model, example)

    def speak_level_0(self, network: AllLevelsNetwork, example: MaskedUtterance) -> NDArray[Any]:
        from valle_convert.families.v7.trials import speak_level_0

        return speak_level_0(network, example)

    def speak_levels(
        self, network: AllLevelsNetwork, example: MaskedUtterance, level_0: NDArray[Any]
    ) -> NDArray[Any]:
        from valle_convert.families.v7.trials import speak_levels

        return speak_levels(network, example, level_0)

    def speed(self, network: AllLevelsNetwork) -> Speed:
        from valle_convert.families.v7.trials import measure_speed

        return measure_speed(network)

    def speaker_on(
        self,
        network: AllLevelsNetwork,
        bundle: Bundle,
        codec: AudioCodec | None,
        opened: ExitStack,
    ) -> VersionSevenSpeaker:
        from valle_convert.families.v7.speech import VersionSevenSpeaker
        from valle_convert.speech.phonemes import phoneme_tokenizer

        tokenize, _ = phoneme_tokenizer(bundle.main, opened)
        return VersionSevenSpeaker(network, tokenize=tokenize, codec=codec, opened=opened)

    def recorded_tokenizer(self, file: GgufFile, given: Path | None) -> TokenizerFile:
        from valle_convert.tokenizer.recorded import recorded_tokenizer

        return recorded_tokenizer(file.keys, file.path, given)

    def words(self, model: VersionSevenModel) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        config = model.config
        sizes = {
            "width": config.n_embd,
            "layers": config.n_layer,
            "heads": config.n_head,
            "feed-forward width": config.n_ff,
            "encoders' feed-forward width": config.n_ff_encoder,
            "decoders' feed-forward width": config.n_ff_decoder,
            "context": config.n_ctx_train,
        }
        behaviour = {
            "checkpoint version": config.version,
            "capabilities": list(config.capabilities),
            "positions": config.positions,
            "NAR attention": config.nar_attention,
            "encoders normed": config.encoder_norm,
            "levels weighted": config.level_weights,
            "norms": "one a level" if config.level_norm else "one for all levels",
            "duration": "in seconds"
            if model.audio.head("length").n_rows == 1
            else "digit by digit",
            "languages": list(model.languages),
            "tasks": list(model.tasks),
            "tones": list(model.tones),
        }
        return sizes, behaviour

    def nets(
        self, model: VersionSevenModel
    ) -> Iterator[tuple[str, tuple[Table, ...], tuple[Head, ...]]]:
        yield PART, model.tables, model.heads
        yield AUDIO, model.audio.tables, model.audio.heads


FAMILY = VersionSeven()
