"""The GGUF file of a checkpoint of versions 5 and 6: its keys, written and read back.

docs/gguf-keys.md describes them.
"""

from collections.abc import Iterator, Mapping

from valle_convert.checkpoint import Checkpoint
from valle_convert.errors import InputError
from valle_convert.families.gemma import PART, main_keys, n_token_rows, read_main
from valle_convert.families.v5.facts import rows_of_heads, rows_of_tables
from valle_convert.families.v5.old import is_old, why_wrong
from valle_convert.gguf_file.header import Key
from valle_convert.gguf_file.keys import (
    FAMILY_KEY,
    FORMAT_VERSION,
    KeyReader,
    config_keys,
    name_keys,
    row_keys,
)
from valle_convert.gguf_file.plan import FileKeys
from valle_convert.gguf_file.read import GgufFile
from valle_convert.model.description import Description
from valle_convert.model.spec import Model, ModelConfig
from valle_convert.tokenizer.choose import TokenizerChoice


def file_keys(
    checkpoint: Checkpoint,
    description: Description[Model],
    part: str,
    tokenizer: TokenizerChoice,
) -> FileKeys:
    del part
    return main_keys(checkpoint, description, tokenizer, model_keys(description.model))


def model_keys(model: Model) -> Iterator[Key]:
    """The VALL-E part of the file; `read_model` is the inverse."""
    config = model.config
    yield Key("valle.format_version", FORMAT_VERSION, "u32")
    yield from config_keys(config)
    yield Key("valle.sums.prompt", config.sum_prompt, "bool")
    yield Key("valle.sums.response", config.sum_response, "bool")
    yield from name_keys(model.languages, model.tasks, model.tones)
    yield from row_keys(model.tables, model.heads)


def read_model(files: Mapping[str, GgufFile]) -> Model:
    file = files[PART]
    if is_old(file):
        raise InputError(why_wrong(file.path))
    if (family := file.keys.get(FAMILY_KEY)) is not None:
        raise InputError(
            f"{file.path} is a model of the family {family!r:.40}, expected one of version 5 or 6; "
            "give it to a command, or to `open_bundle`, which know its family."
        )
    reader, found = read_main(file)
    config = ModelConfig(
        **vars(reader.config()),
        sum_prompt=reader.flag("valle.sums.prompt"),
        sum_response=reader.flag("valle.sums.response"),
    )
    model = Model(config=config, heads=reader.heads(n_token_rows(file)), **found)
    _check_contents(reader, model)
    reader.finish(file.path)
    return model


def _check_contents(reader: KeyReader, model: Model) -> None:
    """Requirements of the decoders: adjacent tables, every table and head of every level."""
    config = model.config
    if not 0 < config.n_levels <= 64:
        reader.faults.append(f"valle.codec.levels is {config.n_levels}")
        return
    reader.compare_rows("table", model.tables, rows_of_tables(config))
    n_phonemes = model.table("phonemes").n_rows if model.has_table("phonemes") else 0
    reader.compare_rows("head", model.heads, rows_of_heads(config, n_phonemes))
    reader.compare_order(model.tables, "phonemes")
