"""Shared by families with a `gemma` as backbone and a vocabulary of phonemes."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from valle_convert.checkpoint import Checkpoint
from valle_convert.errors import InputError
from valle_convert.families.family import Choices, Family
from valle_convert.gguf_file.header import Key
from valle_convert.gguf_file.keys import (
    ARCHITECTURE,
    SOURCE_CONFIG_KEY,
    SOURCE_SYMMAP_KEY,
    SPECIAL_IDS,
    KeyReader,
    architecture_keys,
)
from valle_convert.gguf_file.loadable import gemma_dangers
from valle_convert.gguf_file.plan import TOKEN_EMBEDDING, FileKeys
from valle_convert.gguf_file.read import GgufFile
from valle_convert.model.description import (
    Collector,
    Contents,
    Description,
    Dropped,
    RowBlock,
    source_shapes,
)
from valle_convert.model.inputs import Condition
from valle_convert.model.spec import BOS_PHONEME, EOS_PHONEME, GemmaModel
from valle_convert.model.trainer import DROPPED, ConfigReader, unread_notes
from valle_convert.network.protocol import AnyNetwork
from valle_convert.tokenizer.choose import TokenizerChoice, TokenizerFile, choose_tokenizer
from valle_convert.tokenizer.compiled import TOKENIZER_SHA256_KEY, CompiledTokenizer

if TYPE_CHECKING:
    from valle_convert.audio.codec import AudioCodec
    from valle_convert.families.bundle import Bundle
    from valle_convert.network.arithmetic import Arithmetic
    from valle_convert.speech.speaker import AnySpeaker

#: The part with the backbone.
PART = "model"

G = TypeVar("G", bound=GemmaModel[Any])
N = TypeVar("N", bound=AnyNetwork)


class GemmaFamily(Family[G, N]):
    """A family whose main file is a `gemma` with phonemes as its vocabulary."""

    reads = frozenset({"out_type", "tokenizer", "codec", "metadata"})
    needs = ("speech",)
    example_arrays = "phonemes, response, prompt and language"
    abilities = MappingProxyType({"export": ".gemma_export:export_file"})

    @abstractmethod
    def contents_of(self, model: G) -> Mapping[str, Contents]:
        """The checkpoint's names of everything in the files, by part, from the model alone."""

    def tokenizer(
        self, checkpoint: Checkpoint, description: Description[G], choices: Choices
    ) -> TokenizerChoice:
        return choose_tokenizer(
            choices.tokenizer,
            checkpoint.path,
            checkpoint.symmap,
            description.model.table("phonemes").n_rows,
            carried=checkpoint.vocabulary,
        )

    def dangers(self, files: Mapping[str, GgufFile]) -> Iterator[str]:
        return gemma_dangers(files[PART])

    def differences(self, planned: G, found: G) -> list[str]:
        def rows_of(model: G) -> list[object]:  # only a file's heads have biases
            return [
                (tables, [replace(head, bias=None) for head in heads])
                for _, tables, heads in self.tables_and_heads(model)
            ]

        same = {
            "sizes and switches": planned.config == found.config,
            "tables and heads": rows_of(planned) == rows_of(found),
        }
        return [f"other {words}" for words, is_same in same.items() if not is_same]

    def arithmetic(self, bundle: Bundle) -> Arithmetic:
        from valle_convert.network.arithmetic import Arithmetic, gelu_from_table, input_rounding

        types = {name: tensor.ggml_type.name for name, tensor in bundle.main.tensors.items()}
        return Arithmetic(gelu_from_table, input_rounding({PART: types}))

    def recorded_tokenizer(self, file: GgufFile, given: Path | None) -> TokenizerFile:
        from valle_convert.tokenizer.choose import recorded_tokenizer

        return recorded_tokenizer(file.keys, file.path, given)

    def speaker_on(
        self, network: N, bundle: Bundle, codec: AudioCodec | None, opened: ExitStack
    ) -> AnySpeaker:
        from valle_convert.speech.phonemes import phoneme_tokenizer

        tokenizer = phoneme_tokenizer(bundle.main, opened)
        speaker: AnySpeaker = self._at("speech:SPEAKER")(network, tokenizer, codec, opened)
        return speaker

    def summary(self, model: G) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
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
            "languages": list(model.languages),
            "tasks": list(model.tasks),
            "tones": list(model.tones),
        }
        return sizes, behaviour


def described(
    checkpoint: Checkpoint,
    reader: ConfigReader,
    collector: Collector,
    model: G,
    contents: Mapping[str, Contents],
    notes: Iterable[str],
    dropped: Iterable[Dropped] = (),
) -> Description[G]:
    """A description, if the checkpoint has the tensors that `contents` needs and no others."""
    for one in contents.values():
        for source, shape in source_shapes(one, model.config.n_embd).items():
            collector.take(source, shape)
    others = collector.finish(
        f"{checkpoint.path} does not fit its config ({checkpoint.config_source})",
        "Give the config that belongs to these weights with --config.",
        DROPPED,
    )
    return Description(
        model,
        checkpoint.tensors,
        contents,
        (*dropped, *others),
        (*notes, *unread_notes(checkpoint.config)),
        tuple(reader.assumed),
    )


def n_token_rows(file: GgufFile) -> int:
    """The rows of the token embedding; a file without one is rejected."""
    embedding = file.tensors.get(TOKEN_EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise InputError(
            f"{file.path} has no matrix {TOKEN_EMBEDDING}, so it is not a converted checkpoint; "
            "convert one with `valle-convert CHECKPOINT OUT.gguf`."
        )
    return embedding.shape[0]


def main_keys(
    checkpoint: Checkpoint,
    description: Description[Any],
    tokenizer: TokenizerChoice,
    keys: Iterable[Key],
) -> FileKeys:
    """The keys of a main file, with the family's own."""
    model = description.model
    vocabulary, extra_rows = phoneme_vocabulary(tokenizer, description.contents[PART].rows)
    return FileKeys(
        ARCHITECTURE,
        graph=architecture_keys(model.config),
        vocabulary=vocabulary,
        model=keys,
        tail=source_json_keys(
            {SOURCE_CONFIG_KEY: checkpoint.config, SOURCE_SYMMAP_KEY: checkpoint.symmap}
        ),
        extra_rows=extra_rows,
        languages=model.languages,
    )


def read_main(file: GgufFile) -> tuple[KeyReader, dict[str, Any]]:
    """A reader of a main file, and the tables and names of the model in it."""
    n_rows = n_token_rows(file)
    reader = KeyReader.of_converted(file.keys, file.path)
    tables = reader.tables(n_rows)
    for name, id_ in SPECIAL_IDS.items():
        reader.expect(name, id_)
    kinds = {"languages": "language", "tasks": "task", "tones": "tone"}
    names = {kind: reader.names(kind, table, tables) for kind, table in kinds.items()}
    return reader, {"tables": tables, **names}


def random_speech(
    model: GemmaModel[Any], i: int, draw: np.random.Generator, length: float = 1.0
) -> tuple[Condition, NDArray[np.int64]]:
    """Random phonemes, a prompt and a response [frames, levels]; the i-th is longer than others."""
    a, b, c = (round(length * n) for n in (32 + 3 * i, 48 + 5 * i, 60 + 7 * i))
    return _speech(model, a, b, c, draw, i % max(1, len(model.languages)))


def everyday_speech(model: GemmaModel[Any]) -> tuple[Condition, NDArray[np.int64]]:
    """The same for a request of everyday size: four seconds after three seconds of voice."""
    rate = round(model.codec.frame_rate or 75)  # EnCodec's
    return _speech(model, 60, 3 * rate, 4 * rate, np.random.default_rng(0))


def _speech(
    model: GemmaModel[Any],
    n_inner: int,
    n_prompt: int,
    n_response: int,
    draw: np.random.Generator,
    language: int = 0,
) -> tuple[Condition, NDArray[np.int64]]:
    n_phonemes, config = model.table("phonemes").n_rows, model.config
    inner = draw.integers(min(4, n_phonemes - 1), n_phonemes, n_inner)
    prompt, response = (
        draw.integers(0, config.codebook_size, (n, config.n_levels)) for n in (n_prompt, n_response)
    )
    phonemes = np.array([BOS_PHONEME, *inner, EOS_PHONEME])
    return Condition.of(model, phonemes, prompt, language), response


_MAX_JSON = 1 << 20


def phoneme_vocabulary(
    tokenizer: TokenizerChoice, blocks: Iterable[RowBlock]
) -> tuple[list[Key], tuple[int, ...]]:
    """The keys, and the phonemes whose rows are copied after all others."""
    _, *others = blocks
    # A unique text for every row that is not a phoneme, such as `<prompt.3:17>`.
    names = [f"<{block.label}:{row}>" for block in others for row in range(block.n_rows)]
    compiled = tokenizer.file.compile(names)
    _check_special_ids(compiled, tokenizer)
    keys = [
        *(Key(name, value, kind) for name, value, kind in compiled.metadata()),
        Key("valle.tokenizer.source", tokenizer.source, "string"),
        Key("valle.tokenizer.reason", tokenizer.reason, "string"),
        Key(TOKENIZER_SHA256_KEY, tokenizer.file.sha256, "string"),
    ]
    return keys, compiled.extra_rows


def source_json_keys(given: Mapping[str, Mapping[str, Any] | None]) -> list[Key]:
    """The config and the like of the checkpoint as JSON, by key."""
    texts = {name: _json_of(value) for name, value in given.items()}
    return [Key(name, text, "string") for name, text in texts.items() if text is not None]


def _json_of(value: Mapping[str, Any] | None) -> str | None:
    """A mapping as JSON; None if there is none, or JSON cannot express it."""
    if value is None:
        return None
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None
    return text if len(text) <= _MAX_JSON else None


def _check_special_ids(compiled: CompiledTokenizer, tokenizer: TokenizerChoice) -> None:
    found = {name: value for name, value, _ in compiled.metadata() if name in SPECIAL_IDS}
    if found != SPECIAL_IDS:
        unknown, bos, eos = (found[name] for name in SPECIAL_IDS)
        expected = "{}, {} and {}".format(*SPECIAL_IDS.values())
        raise InputError(
            f"The tokenizer {tokenizer.file.path} has unk, bos and eos = {unknown}, {bos} and "
            f"{eos}, expected {expected}; give the one that the checkpoint was trained with."
        )
