"""Versions 5 and 6 of the e-c-k-e-r/vall-e family: one `gemma` model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint.lora import LoraFile
from valle_convert.checkpoint.source import NamedTensors
from valle_convert.families.family import Case, Choices, Family, Speed, Unit
from valle_convert.families.v5 import facts
from valle_convert.families.v5.facts import PART
from valle_convert.gguf_file.keys import FAMILY_KEY, SOURCE_FORMAT_KEY
from valle_convert.gguf_file.loadable import dangers
from valle_convert.gguf_file.plan import FileKeys
from valle_convert.gguf_file.read import GgufFile
from valle_convert.model.description import Description
from valle_convert.model.spec import CODECS, UNKNOWN_CODEC, Head, Model, Table, codec_named
from valle_convert.tokenizer.choose import TokenizerChoice, TokenizerFile, choose_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from valle_convert.audio.codec import AudioCodec
    from valle_convert.families.bundle import Bundle
    from valle_convert.families.v5.speech import VersionFiveSpeaker
    from valle_convert.families.v5.trials import Utterance
    from valle_convert.llama.context import Settings
    from valle_convert.llama.tuning import Tune
    from valle_convert.network.arithmetic import Arithmetic
    from valle_convert.network.protocol import Network


class VersionFive(Family[Model, "Network", "Utterance"]):
    """Versions 5 and 6; see the modules of this folder."""

    name = ""
    title = "VALL-E"
    reads = frozenset({"out_type", "tokenizer", "codec", "metadata"})
    abilities = MappingProxyType(
        {
            "export": f"{__name__}.export:export_file",
            "listen": f"{__name__}.listen",
            "lora": f"{__name__}.adapter:write_lora",
            "repair": f"{__name__}.old:read_old",
            "utterances": f"{__name__}.recordings:fill_folder",
            "transcribe": f"{__name__}.speech:VersionFiveSpeaker.transcribe",
            "vc": f"{__name__}.speech:VersionFiveSpeaker.answer",
            "ns": f"{__name__}.speech:VersionFiveSpeaker.answer",
            "sr": f"{__name__}.speech:VersionFiveSpeaker.answer",
        }
    )
    speaks_with = frozenset(
        "mode language sampling nar_sampling repetition guidance max_steps length_penalty "
        "max_seconds duration_padding prompt_seconds context_history seed".split()
    )
    needs = ("speech",)
    example_arrays = "phonemes, response, prompt and language"

    def claims(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.config.get("version") in facts.VERSIONS

    def describe(self, checkpoint: Checkpoint, choices: Choices) -> Description[Model]:
        codec = None if choices.codec is None else codec_named(choices.codec)
        return facts.describe(checkpoint, codec)

    def tokenizer(
        self, checkpoint: Checkpoint, description: Description[Model], choices: Choices
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
        description: Description[Model],
        part: str,
        tokenizer: TokenizerChoice,
    ) -> FileKeys:
        from valle_convert.families.v5.files import file_keys

        del part
        return file_keys(checkpoint, description, tokenizer)

    def claims_file(self, file: GgufFile) -> bool:
        return FAMILY_KEY not in file.keys

    def refusal(self, file: GgufFile) -> str:
        from valle_convert.families.v5.old import is_old, why_wrong

        return why_wrong(file.path) if is_old(file) else ""

    def parts(self, main: GgufFile) -> tuple[str, ...]:
        main.refuse_part()
        return (PART,)

    def read_model(self, files: Mapping[str, GgufFile]) -> Model:
        from valle_convert.families.v5.files import open_model

        return open_model(files[PART])

    def dangers(self, files: Mapping[str, GgufFile]) -> Iterator[str]:
        return dangers(files[PART])

    def differences(self, planned: Model, found: Model) -> list[str]:
        def places(model: Model) -> list[tuple[str, int, int]]:
            return [(head.name, head.first_row, head.n_rows) for head in model.heads]

        same = {
            "sizes and switches": planned.config == found.config,
            "tables": planned.tables == found.tables,
            "heads": places(planned) == places(found),
        }
        return [f"other {words}" for words, is_same in same.items() if not is_same]

    def comparable(self, checkpoint: Checkpoint, bundle: Bundle) -> Checkpoint:
        from valle_convert.families.v5.old import as_repaired

        made_of = bundle.main.keys.get(SOURCE_FORMAT_KEY)
        if made_of in (None, checkpoint.origin.get("format")):
            return checkpoint
        return as_repaired(checkpoint, bundle.main)

    def choices_of(self, bundle: Bundle, checkpoint: Checkpoint, given: Choices) -> Choices:
        recorded = bundle.main.keys.get("valle.codec.name")
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
        description: Description[Model],
        *,
        arithmetic: Arithmetic | None = None,
        adapters: Sequence[Any] = (),
        folded: bool = False,
    ) -> Network:
        from valle_convert.families.v5.adapted import adapted_reference
        from valle_convert.network.arithmetic import EXACT

        del folded
        return adapted_reference(tensors, description, adapters, arithmetic=arithmetic or EXACT)

    def open(
        self,
        bundle: Bundle,
        *,
        n_threads: int | None = None,
        settings: Settings | None = None,
        tune: Tune = "off",
        adapters: Sequence[LoraFile] = (),
    ) -> Network:
        from valle_convert.families.v5.on_llama import GgufNetwork

        return GgufNetwork(
            bundle.main,
            bundle.model,
            n_threads=n_threads,
            settings=settings,
            tune=tune,
            adapters=adapters,
        )

    def open_adapters(
        self, adapters: Sequence[LoraFile], base: Bundle | Checkpoint
    ) -> Sequence[Any]:
        from valle_convert.families.v5.adapter import AdapterBase, read_adapter

        if isinstance(base, Checkpoint):
            fits = AdapterBase.of_checkpoint(base)
        else:
            fits = AdapterBase.of_gguf(base.main)
        return [
            replace(read_adapter(GgufFile(one.path), fits), factor=one.factor) for one in adapters
        ]

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

    def draw(self, model: Model, n: int, seed: int) -> Iterable[Utterance]:
        from valle_convert.families.v5.trials import utterances

        return utterances(model, n, seed=seed)

    def read_example(self, path: Path, model: Model, number: int, seed: int) -> Utterance:
        from valle_convert.families.v5.trials import read_utterance

        return read_utterance(path, model, seed=(seed, number))

    def said_in(self, example: Utterance) -> NDArray[Any]:
        return example.condition.phonemes

    def cases(self, model: Model, example: Utterance) -> Iterator[Case[Network]]:
        from valle_convert.families.v5.trials import cases

        return cases(model, example)

    def speak_level_0(self, network: Network, example: Utterance) -> NDArray[Any]:
        from valle_convert.families.v5.trials import speak_level_0

        return speak_level_0(network, example)

    def speak_levels(
        self, network: Network, example: Utterance, level_0: NDArray[Any]
    ) -> NDArray[Any]:
        from valle_convert.families.v5.trials import speak_levels

        return speak_levels(network, example, level_0)

    def speed(self, network: Network) -> Speed:
        from valle_convert.families.v5.trials import measure_speed

        return measure_speed(network)

    def speaker_on(
        self, network: Network, bundle: Bundle, codec: AudioCodec | None, opened: ExitStack
    ) -> VersionFiveSpeaker:
        from valle_convert.families.v5.speech import VersionFiveSpeaker
        from valle_convert.speech.phonemes import phoneme_tokenizer

        tokenize, detokenize = phoneme_tokenizer(bundle.main, opened)
        return VersionFiveSpeaker(
            network, tokenize=tokenize, detokenize=detokenize, codec=codec, opened=opened
        )

    def recorded_tokenizer(self, file: GgufFile, given: Path | None) -> TokenizerFile:
        from valle_convert.tokenizer.recorded import recorded_tokenizer

        return recorded_tokenizer(file.keys, file.path, given)

    def words(self, model: Model) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        config = model.config
        sizes = {
            "width": config.n_embd,
            "layers": config.n_layer,
            "heads": config.n_head,
            "key/value heads": config.n_head_kv,
            "feed-forward width": config.n_ff,
            "context": config.n_ctx_train,
        }
        behaviour = {
            "checkpoint version": config.version,
            "capabilities": list(config.capabilities),
            "positions": config.positions,
            "NAR attention": config.nar_attention,
            "prompt levels summed": config.sum_prompt,
            "response levels summed": config.sum_response,
            "languages": list(model.languages),
            "tasks": list(model.tasks),
            "tones": list(model.tones),
        }
        return sizes, behaviour

    def nets(self, model: Model) -> Iterator[tuple[str, tuple[Table, ...], tuple[Head, ...]]]:
        yield PART, model.tables, model.heads


FAMILY = VersionFive()
