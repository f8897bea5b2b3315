"""The interface of a family of checkpoints; all other code is shared by families.

A family has no state. Its methods import heavy packages (torch, llama.cpp) themselves.

M is the family's model without weights, N a network that computes it. Generic code only closes a
network, sets its `observe`, and passes it to cases.
"""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint.lora import LoraFile
from valle_convert.checkpoint.source import NamedTensors
from valle_convert.errors import InputError
from valle_convert.gguf_file.keys import FAMILY_KEY
from valle_convert.gguf_file.metadata import GeneralMetadata
from valle_convert.gguf_file.plan import FileKeys
from valle_convert.gguf_file.read import GgufFile
from valle_convert.metrics import Logits
from valle_convert.model.description import Description
from valle_convert.model.spec import CODECS, UNKNOWN_CODEC, CodeFormat, Head, Table
from valle_convert.network.protocol import AnyNetwork, OnLlama
from valle_convert.tokenizer.choose import TokenizerChoice, TokenizerFile

if TYPE_CHECKING:
    from valle_convert.audio.codec import AudioCodec
    from valle_convert.families.bundle import Bundle
    from valle_convert.llama.context import Settings
    from valle_convert.network.arithmetic import Arithmetic
    from valle_convert.speech.speaker import AnySpeaker

M = TypeVar("M", bound=CodeFormat)
N = TypeVar("N", bound=AnyNetwork)


@dataclass(frozen=True)
class Choices:
    """A user's choices for a conversion."""

    out_type: str = "auto"  # a key of `OUT_TYPES`, in any case
    #: A tokenizer.json or SentencePiece .model; None chooses one, with a reason.
    tokenizer: Path | None = None
    codec: str | None = None  # name of the audio codec; None derives it from levels and codes
    #: Values for the `general.*` keys.
    metadata: GeneralMetadata = field(default_factory=GeneralMetadata)


@dataclass(frozen=True)
class Unit:
    """A unit of quantization, one file for llama-quantize. Parts outside of units are copied."""

    part: str  # the part whose tensors are quantized
    #: The part whose keys and vectors make it a complete model; None for its own.
    first: str | None = None


#: The length of speech without randomness, to compare codes.
GREEDY_FRAMES = 32


@dataclass(frozen=True)
class Case(Generic[N]):
    """One pass, or several that belong together, on one example."""

    name: str  # for reports, such as `nar.3` or `mask null`
    head: str
    run: Callable[[N], Logits]  # computes the logits, [predictions, rows of the head]
    #: The case with the same inputs, so that this one adds nothing on weights; or "".
    repeats: str = ""
    #: The rows of that case's logits that this one repeats, if it has the same head.
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Speed:
    """Median times of decoding, in milliseconds, on a request of everyday size."""

    ar_step: float  # one code of the AR
    nar_pass: float  # all codes of a level above 0, in one pass; else of masked codes
    n_positions: int  # of the request


def median_ms(run: Callable[[], object], n: int) -> float:
    """The median time of `n` runs, in milliseconds."""
    seconds = []
    for _ in range(n):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return 1000 * statistics.median(seconds)


class Family(ABC, Generic[M, N]):
    """A family of checkpoints."""

    #: The value of `valle.family`; empty for the family without this key.
    name: ClassVar[str]
    #: For users.
    title: ClassVar[str]
    #: The supported fields of `Choices`; any other one is rejected.
    reads: ClassVar[frozenset[str]]
    #: The supported fields of `SpeakOptions`; the command line rejects the others.
    speaks_with: ClassVar[frozenset[str]]
    #: Optional abilities, as places in the folder: the function that implements one, as
    #: `module:function`, or a module of several. For `transcribe` and the tasks `vc`, `ns` and
    #: `sr`, a method of the family's speaker as `module:Class.method`. `.module` is beside the
    #: folder.
    abilities: ClassVar[Mapping[str, str]] = MappingProxyType({})
    #: Whether converted files store values precomputed from separate tensors of the checkpoint.
    folds: ClassVar[bool] = False
    #: Extras that its speech needs.
    needs: ClassVar[tuple[str, ...]] = ()
    #: Further ones, by language.
    needs_for: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})
    #: The contents of a file of `--data`, in words.
    example_arrays: ClassVar[str]
    #: The number of strings to compare tokenizers on.
    n_texts: ClassVar[int] = 100_000

    def ability(self, name: str) -> Any:  # noqa: ANN401 - a function of the family's own
        """The implementation of an optional ability; an `InputError` if the family lacks it."""
        place = self.abilities.get(name)
        if place is None:
            raise InputError(f"{name} does not support {self.title} yet.")
        return self._at(place)

    def _at(self, place: str) -> Any:  # noqa: ANN401 - of the family's own
        """What is at a place in the family's folder; heavy packages are imported with it."""
        module, _, name = place.partition(":")
        found = import_module(f".{module}", type(self).__module__)
        return attrgetter(name)(found) if name else found

    # ---- a checkpoint

    @abstractmethod
    def claims(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint belongs to this family, or to a relative that it rejects by name."""

    @abstractmethod
    def describe(self, checkpoint: Checkpoint, choices: Choices) -> Description[M]:
        """Understand a checkpoint.

        Raises:
            UnsupportedModelError: it computes something that converted files do not.
            InputError: config and weights disagree, or tensors are missing or unexpected.
        """

    # ---- its files

    @abstractmethod
    def tokenizer(
        self, checkpoint: Checkpoint, description: Description[M], choices: Choices
    ) -> TokenizerChoice:
        """The source of the vocabulary."""

    def keys(
        self,
        checkpoint: Checkpoint,
        description: Description[M],
        part: str,
        tokenizer: TokenizerChoice,
    ) -> FileKeys:
        """The keys of a part's file."""
        keys: FileKeys = self._at("files:file_keys")(checkpoint, description, part, tokenizer)
        return keys

    def claims_file(self, file: GgufFile) -> bool:
        """Whether a GGUF file is this family's, or made from its checkpoints."""
        return bool(file.keys.get(FAMILY_KEY, "") == self.name)

    def refusal(self, file: GgufFile) -> str:
        """Why a file is not a converted model although it holds one, and the remedy; else ""."""
        del file
        return ""

    @abstractmethod
    def parts(self, main: GgufFile) -> tuple[str, ...]:
        """The parts that belong to a main file, itself first."""

    def part_keys(self, part: str) -> Mapping[str, Any]:
        """The keys that distinguish a part of a set, with their values."""
        raise NotImplementedError(part)

    def check_part(self, file: GgufFile, part: str) -> None:
        """Reject a file that is not the part that its name says."""
        expected = self.part_keys(part)
        found = {key: file.keys.get(key) for key in expected}
        if found != expected:

            def shown(keys: Mapping[str, Any]) -> str:
                return " ".join(str(one) for one in keys.values() if one is not None)

            raise InputError(
                f"{file.path} is the part {shown(found)!r:.40}, expected {shown(expected)!r} of "
                f"{self.title}; give the set's main file, and keep the names of the others."
            )

    def read_model(self, files: Mapping[str, GgufFile]) -> M:
        """The model in the files."""
        model: M = self._at("files:read_model")(files)
        return model

    def dangers(self, files: Mapping[str, GgufFile]) -> Iterator[str]:
        """Everything that llama.cpp would not survive, in words."""
        del files
        yield from ()

    def differences(self, planned: M, found: M) -> list[str]:
        """Differences of the model in files from the checkpoint's, in words."""
        return [] if planned == found else ["another model"]

    def comparable(self, checkpoint: Checkpoint, bundle: Bundle) -> Checkpoint:
        """A checkpoint, reduced to what these files can contain."""
        del bundle
        return checkpoint

    def choices_of(self, bundle: Bundle, checkpoint: Checkpoint, given: Choices) -> Choices:
        """The choices that files show, unless given."""
        recorded = bundle.model.codec.name
        if given.codec is not None or recorded not in {codec.name for codec in CODECS.values()}:
            return given
        is_unknown = self.describe(checkpoint, Choices()).model.codec is UNKNOWN_CODEC
        return replace(given, codec=recorded) if is_unknown else given

    def units(self, parts: Sequence[str]) -> tuple[Unit, ...]:
        """The units of quantization among these parts."""
        return tuple(Unit(part) for part in parts)

    # ---- what computes

    def reference(
        self,
        tensors: NamedTensors,
        description: Description[M],
        *,
        arithmetic: Arithmetic | None = None,  # None for the checkpoint's own, in float32
        adapters: Sequence[Any] = (),  # LoRAs that are kept apart, opened
        folded: bool = False,  # whether `tensors` come from converted files, see `folds`
    ) -> N:
        """The network in PyTorch."""
        how: dict[str, Any] = {"adapters": adapters} if adapters else {}
        how |= {"arithmetic": arithmetic} if arithmetic is not None else {}
        how |= {"folded": True} if folded and self.folds else {}
        network: N = self._at("reference:NETWORK")(tensors, description, **how)
        return network

    def open(
        self,
        bundle: Bundle,
        *,
        settings: Settings | None = None,  # None for the exact way, for verdicts
        adapters: Sequence[LoraFile] = (),  # LoRAs kept apart, applied while it runs
    ) -> N:
        """The network on stock llama.cpp.

        Raises:
            InputError: the files are damaged.
            EnvironmentFault: there is no usable llama.cpp, or it does not compute as needed.
        """
        more = {"adapters": self.open_adapters(adapters, bundle)} if adapters else {}
        kind = self._at("on_llama:NETWORK")
        network: N = kind(bundle.files, bundle.model, settings=settings, **more)
        return network

    def open_adapters(
        self, adapters: Sequence[LoraFile], base: Bundle | Checkpoint
    ) -> Sequence[Any]:
        """LoRAs that are kept apart, for `reference`."""
        if adapters:
            raise InputError(f"--lora does not apply to {self.title} ({base.path}); leave it out.")
        return ()

    @abstractmethod
    def arithmetic(self, bundle: Bundle) -> Arithmetic:
        """llama.cpp's rounding for these files."""

    def loaded(self, files: Mapping[str, GgufFile]) -> Mapping[str, Sequence[GgufFile]]:
        """The models that llama.cpp loads, by part, each with its files."""
        part, main = next(iter(files.items()))
        return {part: [main]}

    # ---- examples and cases

    @property
    def trials(self) -> Any:  # noqa: ANN401 - a module of the family's own
        """The folder's trials.py, with these functions:

        utterances(model, n, seed=, length=)  random examples; `length` scales theirs
        read_utterance(path, model, seed=)    an example from a file; missing parts are random
        cases(model, example)                 a `Case` for every head and every task
        speak_level_0(network, example)       greedy codes of level 0, [frames]
        speak_levels(network, example, level_0)   of all levels over these, [frames, levels]
        measure_speed(network)                the `Speed` of decoding

        An example has `said`, the ids of its symbols, [n].
        """
        return self._at("trials")

    # ---- speech and words

    def speaker(
        self,
        bundle: Bundle,
        *,
        # Between audio and codes, or a thread that opens it; None speaks codes only.
        codec: AudioCodec | Future[AudioCodec] | None = None,
        settings: Settings | None = None,
        adapters: Sequence[LoraFile] = (),
    ) -> AnySpeaker:
        """A speaker on the network that `open` gives for the other arguments.

        Raises:
            InputError: the codec is not the model's, or as `open`.
        """
        with ExitStack() as opened:
            network = self.open(bundle, settings=settings, adapters=adapters)
            opened.callback(network.close)
            if isinstance(codec, Future):
                codec = codec.result()
            speaker = self.speaker_on(network, bundle, codec, opened)
            first, *_ = cast("OnLlama", network).sessions.values()
            speaker.batch.width = first.settings.n_parallel
        return speaker

    @abstractmethod
    def speaker_on(
        self, network: N, bundle: Bundle, codec: AudioCodec | None, opened: ExitStack
    ) -> AnySpeaker:
        """A speaker on an opened network; it takes over `opened`."""

    @abstractmethod
    def recorded_tokenizer(self, file: GgufFile, given: Path | None) -> TokenizerFile:
        """The tokenizer that the vocabulary of a main file was compiled from."""

    @abstractmethod
    def summary(self, model: M) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Sizes and behaviour of a model, by their names for users."""

    @abstractmethod
    def tables_and_heads(
        self, model: M
    ) -> Iterator[tuple[str, tuple[Table, ...], tuple[Head, ...]]]:
        """Tables and heads, by the part that has their rows."""


AnyFamily = Family[Any, Any]
