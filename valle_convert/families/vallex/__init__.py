"""VALL-E X (Plachtaa/VALL-E-X): an AR and a NAR as `mpt` models, in a set of files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from valle_convert.checkpoint import Checkpoint
from valle_convert.errors import InputError
from valle_convert.families.family import Choices, Family, Unit
from valle_convert.families.vallex import facts, files, relatives
from valle_convert.families.vallex.facts import FACTOR, FACTOR_F32, VallexModel
from valle_convert.gguf_file.keys import FAMILY_KEY
from valle_convert.gguf_file.plan import out_type_named
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.types import F32
from valle_convert.model.description import Description
from valle_convert.model.spec import Head, Table
from valle_convert.tokenizer.choose import TokenizerChoice, TokenizerFile

if TYPE_CHECKING:
    from valle_convert.audio.codec import AudioCodec
    from valle_convert.families.bundle import Bundle
    from valle_convert.families.vallex.composed import ComposedNetwork
    from valle_convert.families.vallex.speech import VallexSpeaker
    from valle_convert.network.arithmetic import Arithmetic

_FLOAT32 = ("float32", "F32")


class VallEX(Family[VallexModel, "ComposedNetwork"]):
    name = files.FAMILY
    title = "VALL-E X"
    reads = frozenset({"out_type", "codec", "metadata"})
    speaks_with = frozenset(
        "language voice_text accent sampling nar_sampling best_of length_penalty max_seconds "
        "seed".split()
    )
    folds = True
    needs = ("speech", "vallex")
    needs_for = MappingProxyType({"Japanese": ("japanese",)})
    n_texts = 10_000  # there are no merges that could be wrong
    example_arrays = "audio_tokens, text_tokens and lang_code of a voice file of VALL-E X"

    def claims(self, checkpoint: Checkpoint) -> bool:
        return relatives.is_icefall(checkpoint) or relatives.is_amphion(checkpoint)

    def describe(self, checkpoint: Checkpoint, choices: Choices) -> Description[VallexModel]:
        forced = out_type_named(choices.out_type)
        specs = checkpoint.tensors.specs.values()
        has_f32 = any(spec.dtype_name in _FLOAT32 for spec in specs)
        exact = forced == F32 or (forced is None and has_f32)
        return facts.describe(checkpoint, choices.codec, factor=FACTOR_F32 if exact else FACTOR)

    def tokenizer(
        self, checkpoint: Checkpoint, description: Description[VallexModel], choices: Choices
    ) -> TokenizerChoice:
        del checkpoint, description, choices
        return files.symbol_tokenizer()

    def parts(self, main: GgufFile) -> tuple[str, ...]:
        self.check_part(main, "ar")
        return files.parts_of(main)

    def part_keys(self, part: str) -> Mapping[str, Any]:
        return {FAMILY_KEY: self.name, **files.keys_of_part(part)}

    def differences(self, planned: VallexModel, found: VallexModel) -> list[str]:
        if planned.activation_factor != found.activation_factor:
            return [f"activation factor {found.activation_factor}, not {planned.activation_factor}"]
        return super().differences(planned, found)

    def choices_of(self, bundle: Bundle, checkpoint: Checkpoint, given: Choices) -> Choices:
        # Tensors are compared in the types of the files; the plan's own type decides the factor.
        exact = bundle.model.activation_factor > FACTOR
        found = super().choices_of(bundle, checkpoint, given)
        return replace(found, out_type="f32" if exact else "bf16")

    def units(self, parts: Sequence[str]) -> tuple[Unit, ...]:
        ar, body, first, *_ = parts
        return (Unit(ar), Unit(body, first))

    def arithmetic(self, bundle: Bundle) -> Arithmetic:
        from valle_convert.network.arithmetic import Arithmetic, gelu_from_table, input_rounding

        factor = bundle.model.activation_factor
        types = {
            part: {
                name: tensor.ggml_type.name for name, tensor in bundle.files[part].tensors.items()
            }
            for part in ("ar", "nar")
        }
        return Arithmetic(lambda x: gelu_from_table(x * factor) / factor, input_rounding(types))

    def loaded(self, files: Mapping[str, GgufFile]) -> Mapping[str, Sequence[GgufFile]]:
        ar, body, *levels = files
        return {ar: [files[ar]], **{level: [files[level], files[body]] for level in levels}}

    def speaker_on(
        self, network: ComposedNetwork, bundle: Bundle, codec: AudioCodec | None, opened: ExitStack
    ) -> VallexSpeaker:
        from valle_convert.families.vallex.speech import VallexSpeaker

        del bundle
        return VallexSpeaker(network, codec=codec, opened=opened)

    def recorded_tokenizer(self, file: GgufFile, given: Path | None) -> TokenizerFile:
        del file
        if given is not None:
            raise InputError("VALL-E X has one table of symbols; leave --tokenizer out.")
        return files.symbol_tokenizer().file

    def summary(self, model: VallexModel) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        ar, nar = model.ar, model.nar
        pairs = {
            "width": (ar.n_embd, nar.n_embd),
            "layers": (ar.n_layer, nar.n_layer),
            "heads": (ar.n_head, nar.n_head),
            "feed-forward width": (ar.n_ff, nar.n_ff),
        }
        sizes = {words: f"{a}" if a == b else f"{a} and {b}" for words, (a, b) in pairs.items()}
        behaviour = {
            "attention": "AR: text in both directions, audio causally; NAR: in both directions",
            "activation": f"ReLU, as GELU with the factor {model.activation_factor}",
            "languages": list(model.languages),
        }
        return {**sizes, "text rows": model.n_text}, behaviour

    def tables_and_heads(
        self, model: VallexModel
    ) -> Iterator[tuple[str, tuple[Table, ...], tuple[Head, ...]]]:
        for net in (model.ar, model.nar):
            yield net.name, net.tables, net.heads


FAMILY = VallEX()
