"""Does the file say of itself what the checkpoint says, and does llama.cpp agree?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import cast

import numpy as np

from valle_convert.checkpoint import Checkpoint
from valle_convert.errors import InputError
from valle_convert.gguf_file import keys as gguf_keys
from valle_convert.gguf_file.header import Key
from valle_convert.gguf_file.loadable import dangers
from valle_convert.gguf_file.old import OLD_TYPES_KEY
from valle_convert.gguf_file.plan import GgufPlan, PlannedFile
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.write import read_biases
from valle_convert.llama.gemma import GemmaSession
from valle_convert.network.converted import open_model, read_probe_rows
from valle_convert.verify.report import Check

# What may differ without the file being another model: its name and authors, the number format
# that llama-quantize changed, and the version of the converter.
_FREE_PREFIXES = ("general.",)
_FREE_KEYS = (
    gguf_keys.CONVERTER_KEY,
    gguf_keys.SOURCE_SHA256_KEY,  # `check_source` compares it
    # Where a file lay, and how it was chosen; what was in it is compared by its contents.
    "valle.source.name",
    gguf_keys.SOURCE_LORA_KEY,
    "valle.tokenizer.source",
    "valle.tokenizer.reason",
    # What was missing in the source is held against the checkpoint by what it leads to.
    gguf_keys.SOURCE_FORMAT_KEY,
    gguf_keys.SOURCE_ASSUMED_KEY,
    gguf_keys.SOURCE_LOST_KEY,
    OLD_TYPES_KEY,
    f"{gguf_keys.SOURCE_PREFIX}biases_sha256",
)
#: What a file may say or not: the same weights may have come from the hub.
#: And earlier versions did not write the config, which other keys are compared by.
_OPTIONAL_KEYS = (
    gguf_keys.SOURCE_REVISION_KEY,
    gguf_keys.SOURCE_CONFIG_KEY,
    gguf_keys.SOURCE_SYMMAP_KEY,
)
_EXACT_GENERAL = "general.architecture"
#: Keys that quantizing adds.
QUANTIZE_PREFIX = "valle.quantize."
_SHOWN = 5


def check_structure(plan: GgufPlan, file: GgufFile, *, with_llama: bool) -> Iterator[Check]:
    """Keys, tensors, provenance, and llama.cpp's own counts.

    Args:
        plan: made anew from the checkpoint.
        file: the converted file.
        with_llama: whether to load it with llama.cpp as well.
    """
    yield _check_model(plan, file)
    yield check_keys(plan, file)
    yield check_tensor_table(plan, file)
    if with_llama and not what_llama_must_not_see(plan, file):
        yield _check_llama(plan, file)


def check_source(checkpoint: Checkpoint, file: GgufFile) -> Check | None:
    """Was the file made of this checkpoint at all? None where it does not say.

    Args:
        checkpoint: what it is held against; with a LoRA, if one is merged.
        file: says of which file, and whether with a LoRA, it was made.
    """
    said = file.keys.get(gguf_keys.SOURCE_SHA256_KEY)
    format_ = file.keys.get(gguf_keys.SOURCE_FORMAT_KEY)
    # A file that was made of an export of the checkpoint does not know it.
    made_of_another = format_ is not None and format_ != checkpoint.origin.get("format")
    if not isinstance(said, str) or made_of_another:
        return None
    found = checkpoint.sha256()
    lora = file.keys.get(gguf_keys.SOURCE_LORA_KEY)
    fault = ""
    if said != found:
        fault = (
            f"{file.path.name} was made of another checkpoint "
            f"({file.keys.get('valle.source.name')}, sha256 {said[:16]}...) than "
            f"{checkpoint.path.name} (sha256 {found[:16]}...); give the one that it was made of"
        )
    elif lora is not None and checkpoint.lora is None:
        fault = f"{file.path.name} was made with the LoRA {lora} merged; give it with --lora"
    elif lora is None and checkpoint.lora is not None:
        fault = (
            f"{file.path.name} was made without a LoRA, and {checkpoint.lora} is merged into the "
            "checkpoint; leave out --lora, or convert again"
        )
    return Check(
        "source",
        passed=not fault,
        summary=fault or f"made of {checkpoint.path.name} (sha256 {found[:16]}...)",
        values={"sha256": said, "checkpoint_sha256": found},
    )


def what_llama_must_not_see(plan: GgufPlan, file: GgufFile) -> str:
    """Why llama.cpp should not be given a file: sizes or shapes on which it may abort; else "".

    Keys of other kinds, such as epsilon or positions, may be wrong: it computes something then,
    and the comparison shows what.
    """
    faults = _tensor_faults(plan, file) or list(dangers(file))
    if not faults:
        sizes = [key for key in plan.keys if key.type == "u32" or key.name == _EXACT_GENERAL]
        for key in sizes:
            if key.name == _EXACT_GENERAL or key.name.startswith(f"{gguf_keys.ARCHITECTURE}."):
                faults += _key_faults(key, key.value, file)
    if not faults:
        tokens = file.keys.get("tokenizer.ggml.tokens")
        n_rows = plan.tensors[0].shape[0]
        if not isinstance(tokens, list) or len(tokens) != n_rows:
            faults.append(f"tokenizer.ggml.tokens is no list of {n_rows} tokens")
    if not faults:
        try:
            model = open_model(file)
        except InputError as error:
            return str(error)
        same = model.tables == plan.model.tables and model.config.n_levels == (
            plan.model.config.n_levels
        )
        if not same:
            faults.append("its tables are not the checkpoint's")
    return "; ".join(faults[:_SHOWN])


def _check_model(plan: GgufPlan, file: GgufFile) -> Check:
    """The valle.* keys, read by the reader that the decoders use."""
    try:
        model = open_model(file)
    except InputError as error:
        return Check("model description", passed=False, summary=str(error), values={})
    same = (
        model.config == plan.model.config
        and model.tables == plan.model.tables
        and [(h.name, h.first_row, h.n_rows) for h in model.heads]
        == [(h.name, h.first_row, h.n_rows) for h in plan.model.heads]
    )
    return Check(
        "model description",
        passed=same,
        summary=f"{len(model.tables)} tables and {len(model.heads)} heads "
        f"{'as' if same else 'not as'} in the checkpoint",
        values={"tables": len(model.tables), "heads": len(model.heads)},
    )


def check_keys(
    plan: PlannedFile, file: GgufFile, late_values: Mapping[str, object] = MappingProxyType({})
) -> Check:
    """Every key of the plan stands in the file, with its type and value.

    Args:
        plan: made anew from the checkpoint.
        file: the file to judge.
        late_values: of the keys that are known when a file is written; biases need none.
    """
    deferred = dict(late_values)
    if plan.biases:
        deferred[gguf_keys.BIAS_KEY] = read_biases(plan)
    faults: list[str] = []
    n_compared = 0
    for key in plan.keys:
        is_free = key.name.startswith(_FREE_PREFIXES) and key.name != _EXACT_GENERAL
        if is_free or key.name in _OPTIONAL_KEYS:
            continue
        n_compared += 1
        if key.name in gguf_keys.DIGEST_KEYS:
            n_compared -= 1  # quantizing leaves them out
        elif key.name in _FREE_KEYS:  # it has to be there, with whatever value
            faults += [] if key.name in file.keys else [f"{key.name} is missing"]
        else:
            faults += _key_faults(key, deferred.get(key.name, key.value), file)
    expected = {*_OPTIONAL_KEYS, *(key.name for key in plan.keys)}
    faults += [
        f"{name} is there, and not expected"
        for name in file.keys
        if name.startswith("valle.")
        and not name.startswith(QUANTIZE_PREFIX)
        and name not in expected
        and name not in _FREE_KEYS
    ]
    shown = "; ".join(faults[:_SHOWN])
    return Check(
        "keys",
        passed=not faults,
        summary=f"{len(faults)} of {n_compared} keys differ: {shown}"
        if faults
        else f"{n_compared} keys, each of the right type and value",
        values={"compared": n_compared, "different": len(faults)},
    )


def _key_faults(key: Key, value: object, file: GgufFile) -> list[str]:
    if key.name not in file.keys:
        return [f"{key.name} is missing"]
    found_type = file.key_types[key.name]
    if found_type != key.type:
        return [f"{key.name} is of type {found_type}, not {key.type}"]
    found = file.keys[key.name]
    if key.type == "f32":
        value = float(np.float32(cast("float", value)))  # the nearest that a file can hold
    return [] if found == value else [f"{key.name} is {found!r:.60}, not {value!r:.60}"]


def check_tensor_table(plan: PlannedFile, file: GgufFile) -> Check:
    """Names and shapes; the types may be those of a quantized file."""
    faults = _tensor_faults(plan, file)
    return Check(
        "tensor table",
        passed=not faults,
        summary="; ".join(faults[:_SHOWN])
        or f"{len(plan.tensors)} tensors of the right names and shapes",
        values={"tensors": len(file.tensors), "faults": len(faults)},
    )


def _tensor_faults(plan: PlannedFile, file: GgufFile) -> list[str]:
    expected = {tensor.name: tensor.shape for tensor in plan.tensors}
    found = {name: tensor.shape for name, tensor in file.tensors.items()}
    faults = [f"{name} is missing" for name in expected if name not in found]
    faults += [f"{name} is not expected" for name in found if name not in expected]
    faults += [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    return faults


def _check_llama(plan: GgufPlan, file: GgufFile) -> Check:
    """Stock llama.cpp loads the file and counts what the plan counts."""
    config = plan.model.config
    expected = {
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_vocab": plan.tensors[0].shape[0],
        "n_params": plan.n_weights,
    }
    try:
        with GemmaSession(file.path, n_ctx=8, probe_rows=read_probe_rows(file)) as session:
            found = {
                "n_embd": session.n_embd,
                "n_layer": session.n_layer,
                "n_vocab": session.n_vocab,
                "n_params": session.n_params,
            }
            scale = session.input_scale
    except InputError as error:
        return Check("llama.cpp", passed=False, summary=str(error), values={})
    faults = [f"{name} {found[name]}, not {n}" for name, n in expected.items() if found[name] != n]
    return Check(
        "llama.cpp",
        passed=not faults,
        summary="; ".join(faults)
        or f"loads it: {found['n_params']:,} weights, {found['n_vocab']:,} rows, "
        f"inputs scaled by {scale:g}",
        values={**found, "input_scale": scale},
    )
