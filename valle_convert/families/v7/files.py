"""The two GGUF files of a checkpoint of version 7: their keys, written and read back.

    out.gguf         model    a complete `gemma` with the vocabulary of phonemes
    out-audio.gguf   audio    encoders, decoders and heads, as in llama.cpp's mmproj files

The second file has the architecture `clip`, which llama.cpp has for llama-quantize, without a graph
that computes it. docs/gguf-keys.md lists the keys and the tensors.
"""

from collections.abc import Iterator, Mapping

from valle_convert.checkpoint import Checkpoint
from valle_convert.families.gemma import PART, main_keys, n_token_rows, read_main
from valle_convert.families.v7.facts import (
    AUDIO,
    DIGITS,
    LENGTH_DIGITS,
    VersionSevenConfig,
    VersionSevenModel,
    audio_tensors,
)
from valle_convert.gguf_file.header import Key
from valle_convert.gguf_file.keys import (
    BIAS_KEY,
    FAMILY_KEY,
    FORMAT_VERSION,
    PART_KEY,
    KeyReader,
    codec_keys,
    config_keys,
    name_keys,
    row_keys,
)
from valle_convert.gguf_file.plan import TOKEN_EMBEDDING, FileKeys
from valle_convert.gguf_file.read import GgufFile
from valle_convert.model.description import Description
from valle_convert.model.spec import RowMap
from valle_convert.tokenizer.choose import TokenizerChoice

FAMILY = "vall-e-7"
_ENCODERS = "clip"
_MAX_LEVELS = 64


def file_keys(
    checkpoint: Checkpoint,
    description: Description[VersionSevenModel],
    part: str,
    tokenizer: TokenizerChoice,
) -> FileKeys:
    model, config = description.model, description.model.config
    who = [
        Key("valle.format_version", FORMAT_VERSION, "u32"),
        Key(FAMILY_KEY, FAMILY, "string"),
        Key(PART_KEY, part, "string"),
    ]
    if part == AUDIO:
        return FileKeys(
            _ENCODERS,
            graph=[Key("general.type", "mmproj", "string")],
            model=[
                *who,
                *codec_keys(config),
                *_encoder_keys(config),
                *row_keys(model.audio.tables, model.audio.heads),
            ],
        )
    keys = [
        *who,
        *config_keys(config),
        *name_keys(model.languages, model.tasks, model.tones),
        *row_keys(model.tables),
    ]
    return main_keys(checkpoint, description, tokenizer, keys)


def _encoder_keys(config: VersionSevenConfig) -> Iterator[Key]:
    yield Key("clip.audio.embedding_length", config.n_embd, "u32")
    yield Key("valle.encoder.norm", config.encoder_norm, "bool")
    yield Key("valle.encoder.feed_forward_length", config.n_ff_encoder, "u32")
    yield Key("valle.encoder.level_weights", config.level_weights, "bool")
    yield Key("valle.decoder.norm", config.level_norm, "bool")
    yield Key("valle.decoder.feed_forward_length", config.n_ff_decoder, "u32")


# ------------------------------------------------------------------------------- reading


def read_model(files: Mapping[str, GgufFile]) -> VersionSevenModel:
    main, audio = files[PART], files[AUDIO]
    reader, found = read_main(main)
    of_audio = KeyReader.of_converted(audio.keys, audio.path)
    config = VersionSevenConfig(
        **vars(reader.config()),
        encoder_norm=of_audio.flag("valle.encoder.norm"),
        n_ff_encoder=of_audio.number("valle.encoder.feed_forward_length"),
        level_weights=of_audio.flag("valle.encoder.level_weights"),
        level_norm=of_audio.flag("valle.decoder.norm"),
        n_ff_decoder=of_audio.number("valle.decoder.feed_forward_length"),
    )
    n_rows = n_token_rows(audio)
    rows = RowMap(of_audio.tables(n_rows), of_audio.heads(n_rows))
    model = VersionSevenModel(config=config, heads=(), audio=rows, **found)
    if not 0 < config.n_levels <= _MAX_LEVELS:
        reader.faults.append(f"valle.codec.levels is {config.n_levels}")
    else:
        _check_rows(reader, of_audio, model)
        of_audio.faults += _tensor_faults(audio, config)
    reader.finish(main.path)
    of_audio.finish(audio.path)
    return model


def _check_rows(reader: KeyReader, of_audio: KeyReader, model: VersionSevenModel) -> None:
    """Requirements of the networks: adjacent tables, every table and head of every level."""
    config, codes, audio = model.config, model.config.codebook_size, model.audio
    reader.compare_rows("table", model.tables, {"phonemes": None, "length": 1, "separator": 1})
    reader.compare_order(model.tables, "phonemes")
    levels = range(config.n_levels)
    tables = {f"prompt.{i}": codes for i in levels} | {f"response.{i}": codes + 2 for i in levels}
    of_audio.compare_rows("table", audio.tables, tables)
    of_audio.compare_order(audio.tables, "prompt.0")
    heads = {f"level.{i}": codes + 1 for i in levels}
    of_audio.compare_rows("head", audio.heads, {**heads, "length": None, "phonemes": None})
    n_length = audio.head("length").n_rows if audio.has_head("length") else 1
    if n_length not in (1, LENGTH_DIGITS * DIGITS):
        of_audio.faults.append(f"the head length has {n_length} rows")
    if any(head.bias is None for head in model.audio.heads):
        of_audio.faults.append(f"{BIAS_KEY} is missing")
    for key in codec_keys(config):
        if of_audio.keys.get(key.name) != reader.keys.get(key.name):
            of_audio.faults.append(f"{key.name} differs from the other file's")


def _tensor_faults(file: GgufFile, config: VersionSevenConfig) -> Iterator[str]:
    embedding = (file.tensors[TOKEN_EMBEDDING].shape[0], config.n_embd)
    shapes = {tensor.target: tensor.shape for tensor in audio_tensors(config)}
    return file.shape_faults({TOKEN_EMBEDDING: embedding} | shapes)
