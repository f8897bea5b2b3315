"""What a family of checkpoints supplies; everything else is written once over all of them.

A family has no state. Whatever is heavy (torch, llama.cpp) is imported inside of its methods.

M is the family's model without weights, N a network that computes it. Generic code only closes a
network, sets its `observe`, and hands it to cases.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from numpy.typing import NDArray

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
from valle_convert.network.protocol import Computing
from valle_convert.tokenizer.choose import TokenizerChoice, TokenizerFile

if TYPE_CHECKING:
    from valle_convert.audio.codec import AudioCodec
    from valle_convert.families.bundle import Bundle
    from valle_convert.llama.context import Settings
    from valle_convert.llama.tuning import Tune
    from valle_convert.network.arithmetic import Arithmetic
    from valle_convert.speech.speaker import AnySpeaker

M = TypeVar("M", bound=CodeFormat)
N = TypeVar("N", bound=Computing)


@dataclass(frozen=True)
class Choices:
    """What a user decides about a conversion.

    Attributes:
        out_type: a key of `OUT_TYPES`, in capitals or not.
        tokenizer: a tokenizer.json or SentencePiece .model; None chooses one, and says why.
        codec: name of the audio codec; None takes it from levels and codes.
        metadata: values for the `general.*` keys.
    """

    out_type: str = "auto"
    tokenizer: Path | None = None
    codec: str | None = None
    metadata: GeneralMetadata = field(default_factory=GeneralMetadata)


@dataclass(frozen=True)
class Unit:
    """What llama-quantize takes as one file. Parts that no unit names are copied.

    Attributes:
        part: whose tensors are quantized.
        first: the part whose keys and vectors make a whole model of it; None for its own.
    """

    part: str
    first: str | None = None


#: How much is spoken without randomness, to compare codes.
GREEDY_FRAMES = 32


@dataclass(frozen=True)
class Case(Generic[N]):
    """One pass, or several that belong together, on one example.

    Attributes:
        name: for reports, such as `nar.3` or `mask null`.
        head: whose logits are given.
        run: computes the logits, [predictions, rows of the head].
        repeats: the inputs are those of another case, so that it tells nothing new of weights.
    """

    name: str
    head: str
    run: Callable[[N], Logits]
    repeats: bool = False


@dataclass(frozen=True)
class Speed:
    """Medians of what decoding is made of, in milliseconds, on a request of everyday size.

    Attributes:
        ar_step: one code of the AR.
        nar_pass: all codes of a level above 0, in one pass; of masked codes where there is none.
        n_positions: of the request.
    """

    ar_step: float
    nar_pass: float
    n_positions: int


class Family(ABC, Generic[M, N]):
    """A family of checkpoints."""

    #: As `valle.family` has it; empty for the family whose files have no such key.
    name: ClassVar[str]
    #: For people.
    title: ClassVar[str]
    #: The fields of `Choices` that it reads; another one that is given is refused.
    reads: ClassVar[frozenset[str]]
    #: The fields of `SpeakOptions` that it reads; the command line refuses the others.
    speaks_with: ClassVar[frozenset[str]]
    #: What it can do beyond converting, measuring and speaking: the function that does it, as
    #: `module:function`, or the module that has several. For `transcribe` and the tasks `vc`, `ns`
    #: and `sr`, a method of the family's speaker as `module:Class.method`.
    abilities: ClassVar[Mapping[str, str]] = MappingProxyType({})
    #: Whether `describe` reads weights, and not headers alone.
    reads_weights: ClassVar[bool] = False
    #: Extras that its speech needs.
    needs: ClassVar[tuple[str, ...]] = ()
    #: Further ones, by the language that needs them.
    needs_for: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})
    #: What a file of `--data` holds, in words.
    example_arrays: ClassVar[str]
    #: Strings that `verify` compares tokenizers on, and examples that it compares logits on.
    n_texts: ClassVar[int] = 100_000
    n_utterances: ClassVar[int] = 3

    def ability(self, name: str) -> Any:  # noqa: ANN401 - a function of the family's own
        """What does something that not every family can do.

        Raises:
            InputError: the family cannot do it.
        """
        place = self.abilities.get(name)
        if place is None:
            raise InputError(f"{name} does not support {self.title} yet.")
        module, _, function = place.partition(":")
        found = import_module(module)
        return attrgetter(function)(found) if function else found

    # ---- a checkpoint

    @abstractmethod
    def claims(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint is of this family, or of a relative that it refuses by name."""

    @abstractmethod
    def describe(self, checkpoint: Checkpoint, choices: Choices) -> Description[M]:
        """Understand a checkpoint.

        Raises:
            UnsupportedModelError: it computes something that no converted file would.
            InputError: config and weights disagree, or tensors are missing or unexpected.
        """

    # ---- its files

    @abstractmethod
    def tokenizer(
        self, checkpoint: Checkpoint, description: Description[M], choices: Choices
    ) -> TokenizerChoice:
        """The tokenizer that the vocabulary is compiled from."""

    @abstractmethod
    def keys(
        self,
        checkpoint: Checkpoint,
        description: Description[M],
        part: str,
        tokenizer: TokenizerChoice,
    ) -> FileKeys:
        """What is written into the file of a part."""

    def set_salt(self, description: Description[M]) -> str | None:
        """What tells two conversions of one checkpoint apart; None for models of one file."""
        del description
        return None

    def claims_file(self, file: GgufFile) -> bool:
        """Whether a GGUF file is one of this family's, or is made of its checkpoints."""
        return bool(file.keys.get(FAMILY_KEY, "") == self.name)

    def refusal(self, file: GgufFile) -> str:
        """Why a file is no converted model though it holds one, and what helps; else ""."""
        del file
        return ""

    @abstractmethod
    def parts(self, main: GgufFile) -> tuple[str, ...]:
        """The parts that belong to a main file, itself first.

        Raises:
            InputError: it is another part than the main one.
        """

    def check_part(self, file: GgufFile, part: str) -> None:
        """Refuse a file that is not the part which its name says.

        Raises:
            InputError: it is not.
        """

    @abstractmethod
    def read_model(self, files: Mapping[str, GgufFile]) -> M:
        """The model that the files describe.

        Raises:
            InputError: they are no converted model, or not consistent; all faults in one message.
        """

    def dangers(self, files: Mapping[str, GgufFile]) -> Iterator[str]:
        """What llama.cpp would not survive, in words."""
        del files
        yield from ()

    def differences(self, planned: M, found: M) -> list[str]:
        """Where the model that files describe is not the one of the checkpoint, in words."""
        return [] if planned == found else ["another model"]

    def comparable(self, checkpoint: Checkpoint, bundle: Bundle) -> Checkpoint:
        """A checkpoint with what these files can have of it."""
        del bundle
        return checkpoint

    def choices_of(self, bundle: Bundle, checkpoint: Checkpoint, given: Choices) -> Choices:
        """The choices that files show, as far as they are not given."""
        recorded = bundle.model.codec.name
        if given.codec is not None or recorded not in {codec.name for codec in CODECS.values()}:
            return given
        is_unknown = self.describe(checkpoint, Choices()).model.codec is UNKNOWN_CODEC
        return replace(given, codec=recorded) if is_unknown else given

    def units(self, parts: Sequence[str]) -> tuple[Unit, ...]:
        """What is quantized of these parts."""
        return tuple(Unit(part) for part in parts)

    # ---- what computes

    @abstractmethod
    def reference(
        self,
        tensors: NamedTensors,
        description: Description[M],
        *,
        arithmetic: Arithmetic | None = None,
        adapters: Sequence[Any] = (),
        folded: bool = False,
    ) -> N:
        """The network in PyTorch.

        Args:
            tensors: gives the weights by the checkpoint's names.
            description: of the checkpoint.
            arithmetic: how layers compute; None for what the checkpoint means, in float32.
            adapters: LoRAs that are kept apart, opened.
            folded: whether `tensors` are those of converted files, in which something may be
                computed already that the checkpoint has apart.
        """

    @abstractmethod
    def open(
        self,
        bundle: Bundle,
        *,
        n_threads: int | None = None,
        settings: Settings | None = None,
        tune: Tune = "off",
        adapters: Sequence[LoraFile] = (),
    ) -> N:
        """The network on stock llama.cpp.

        Args:
            bundle: the files.
            n_threads: None for the cores that this process may use.
            settings: how llama.cpp computes; None for the exact way, which verdicts need.
            tune: whether to find the fastest settings for these files on this machine.
            adapters: LoRAs kept apart, applied while it runs.

        Raises:
            InputError: the files are damaged.
            EnvironmentFault: there is no usable llama.cpp, or it does not do what is relied on.
        """

    def open_adapters(
        self, adapters: Sequence[LoraFile], base: Bundle | Checkpoint
    ) -> Sequence[Any]:
        """LoRAs that are kept apart, for `reference`.

        Raises:
            InputError: one does not fit, or the family knows none.
        """
        if adapters:
            raise InputError(f"--lora does not apply to {self.title} ({base.path}); leave it out.")
        return ()

    def prove(self) -> None:
        """Try on a small model what its networks need beyond the self-test of `llama.probe`.

        Raises:
            EnvironmentFault: llama.cpp does not do it.
        """

    @abstractmethod
    def arithmetic(self, bundle: Bundle) -> Arithmetic:
        """llama.cpp's rounding for these files."""

    @abstractmethod
    def counted(self, bundle: Bundle) -> Mapping[str, tuple[object, object]]:
        """What llama.cpp counts in the files it loads, and what it should.

        Raises:
            InputError: a file cannot be loaded.
            EnvironmentFault: llama.cpp does not do what is relied on.
        """

    # ---- what it is tried on: functions of the folder's trials.py

    @property
    def _trials(self) -> Any:  # noqa: ANN401 - a module
        return import_module(f"{type(self).__module__}.trials")

    def draw(self, model: M, n: int, seed: int) -> Iterable[Any]:
        """`n` random examples, the same for the same seed."""
        yield from self._trials.utterances(model, n, seed=seed)

    def read_example(self, path: Path, model: M, number: int, seed: int) -> Any:  # noqa: ANN401
        """An example of a file; what it does not say is drawn.

        Raises:
            InputError: it is no such file, or is of another model.
        """
        return self._trials.read_utterance(path, model, seed=(seed, number))

    def said_in(self, example: Any) -> NDArray[Any]:  # noqa: ANN401
        """The symbols that an example says, [n]."""
        said: NDArray[Any] = example.said
        return said

    def cases(self, model: M, example: Any) -> Iterator[Case[N]]:  # noqa: ANN401
        """Every head and every task, over one example."""
        yield from self._trials.cases(model, example)

    def speak_level_0(self, network: N, example: Any) -> NDArray[Any]:  # noqa: ANN401
        """Greedy codes of level 0 for what the example says, [frames]."""
        codes: NDArray[Any] = self._trials.speak_level_0(network, example)
        return codes

    def speak_levels(
        self,
        network: N,
        example: Any,  # noqa: ANN401
        level_0: NDArray[Any],
    ) -> NDArray[Any]:
        """Greedy codes of all levels over those of level 0, [frames, levels]."""
        codes: NDArray[Any] = self._trials.speak_levels(network, example, level_0)
        return codes

    def speed(self, network: N) -> Speed:
        """Time what decoding is made of."""
        speed: Speed = self._trials.measure_speed(network)
        return speed

    # ---- speech and words

    def speaker(
        self,
        bundle: Bundle,
        *,
        codec: AudioCodec | None = None,
        n_threads: int | None = None,
        settings: Settings | None = None,
        tune: Tune = "off",
        adapters: Sequence[LoraFile] = (),
    ) -> AnySpeaker:
        """What speaks with a model, on stock llama.cpp.

        Args:
            bundle: the files.
            codec: between audio and codes; None speaks codes only.
            n_threads: None for the cores that this process may use.
            settings: how llama.cpp computes; None for the exact way.
            tune: whether to find the fastest settings for these files on this machine.
            adapters: LoRAs kept apart, applied while it runs.

        Raises:
            InputError: the files are damaged, or the codec is not the model's.
            EnvironmentFault: there is no usable llama.cpp.
        """
        with ExitStack() as opened:
            network = self.open(
                bundle, n_threads=n_threads, settings=settings, tune=tune, adapters=adapters
            )
            opened.callback(network.close)
            return self.speaker_on(network, bundle, codec, opened)

    @abstractmethod
    def speaker_on(
        self, network: N, bundle: Bundle, codec: AudioCodec | None, opened: ExitStack
    ) -> AnySpeaker:
        """What speaks on an opened network; the speaker takes over `opened`."""

    @abstractmethod
    def recorded_tokenizer(self, file: GgufFile, given: Path | None) -> TokenizerFile:
        """The tokenizer that the vocabulary of a main file was compiled from.

        Raises:
            InputError: no tokenizer at hand is that one.
        """

    @abstractmethod
    def words(self, model: M) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Sizes and behaviour of a model, by words for them."""

    @abstractmethod
    def nets(self, model: M) -> Iterator[tuple[str, tuple[Table, ...], tuple[Head, ...]]]:
        """Tables and heads, by the part that their rows lie in."""


AnyFamily = Family[Any, Any]
