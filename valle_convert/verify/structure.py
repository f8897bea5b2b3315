"""Does the file describe itself as the checkpoint does, and does llama.cpp agree?"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

import numpy as np

from valle_convert.checkpoint import Checkpoint
from valle_convert.checkpoint.lora import are_same_loras
from valle_convert.errors import InputError
from valle_convert.families.bundle import Bundle, Plan
from valle_convert.gguf_file import keys as gguf_keys
from valle_convert.gguf_file.header import Key
from valle_convert.gguf_file.plan import PlannedFile
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.write import read_biases
from valle_convert.llama.context import LlamaModel, Settings
from valle_convert.llama.library import load_library
from valle_convert.llama.probe import prove_library
from valle_convert.tokenizer.compiled import TOKENS_KEY
from valle_convert.verify.report import Check
from valle_convert.wording import listing, plural

# Keys that may differ: name and authors, the number format that llama-quantize changed, and the
# version of the converter.
_FREE_PREFIXES = ("general.",)
_FREE_KEYS = (
    gguf_keys.CONVERTER_KEY,
    gguf_keys.SOURCE_SHA256_KEY,  # `check_source` compares it
    # A file's location, and how it was chosen; only its contents are compared.
    "valle.source.name",
    gguf_keys.SOURCE_LORA_KEY,
    "valle.tokenizer.source",
    "valle.tokenizer.reason",
    # The effects of assumed values are compared.
    gguf_keys.SOURCE_FORMAT_KEY,
    gguf_keys.SOURCE_ASSUMED_KEY,
    gguf_keys.SOURCE_LOST_KEY,
    gguf_keys.OLD_TYPES_KEY,
    f"{gguf_keys.SOURCE_PREFIX}biases_sha256",
)
#: Optional keys: the same weights may have come from the hub, and the config is compared by the
#: keys that follow from it.
_OPTIONAL_KEYS = (
    gguf_keys.SOURCE_REVISION_KEY,
    gguf_keys.SOURCE_CONFIG_KEY,
    gguf_keys.SOURCE_SYMMAP_KEY,
)
_EXACT_GENERAL = "general.architecture"
#: Keys that quantizing adds.
QUANTIZE_PREFIX = "valle.quantize."


def check_structure(plan: Plan, bundle: Bundle, with_llama: bool) -> Iterator[Check]:
    yield _check_model(plan, bundle)
    if list(plan.files) != list(bundle.files):
        words = f"{plural(len(bundle.files), 'file')}, expected {len(plan.files)}"
        yield Check.failure("files", words)
        return
    digest = plan.checkpoint.sha256()
    for part, planned, file in pairs_of(plan, bundle):
        yield named(check_keys(planned, file, planned.late_values(digest)), part, plan)
        yield named(check_tensor_table(planned, file), part, plan)
        said = file.keys.get(gguf_keys.SOURCE_SHA256_KEY)
        if said != bundle.main.keys.get(gguf_keys.SOURCE_SHA256_KEY):
            words = f"{file.path.name} was made from another checkpoint than {bundle.path.name}"
            yield named(Check.failure("source", words), part, plan)
    if with_llama and not why_llama_would_abort(plan, bundle):
        yield _check_llama(bundle)


def pairs_of(plan: Plan, bundle: Bundle) -> Iterator[tuple[str, PlannedFile, GgufFile]]:
    """Each part with its plan and its file, if both exist."""
    for part, planned in plan.files.items():
        if part in bundle.files:
            yield part, planned, bundle.files[part]


def named(check: Check, part: str, plan: Plan) -> Check:
    """The check with its part in its name, if there are several parts."""
    return check if len(plan.files) == 1 else replace(check, name=f"{part}: {check.name}")


def check_source(checkpoint: Checkpoint, file: GgufFile) -> Check | None:
    """Was the file made from this checkpoint at all? None if it does not say."""
    said = file.keys.get(gguf_keys.SOURCE_SHA256_KEY)
    format_ = file.keys.get(gguf_keys.SOURCE_FORMAT_KEY)
    # A file made from an export does not have the checkpoint's digest.
    made_of_another = format_ is not None and format_ != checkpoint.origin.get("format")
    if not isinstance(said, str) or made_of_another:
        return None
    found = checkpoint.sha256()
    lora = file.keys.get(gguf_keys.SOURCE_LORA_KEY)
    fault = ""
    if said != found:
        fault = (
            f"{file.path.name} was made from another checkpoint "
            f"({file.keys.get('valle.source.name')}, sha256 {said[:16]}...) than "
            f"{checkpoint.path.name} (sha256 {found[:16]}...); give the right one"
        )
    elif not are_same_loras(lora, checkpoint.lora):
        fault = (
            f"{file.path.name} was made with {lora or 'no LoRA'} merged, but the checkpoint has "
            f"{checkpoint.lora or 'none'}; give the same with --lora"
        )
    return Check(
        "source",
        passed=not fault,
        summary=fault or f"made from {checkpoint.path.name} (sha256 {found[:16]}...)",
        values={"sha256": said, "checkpoint_sha256": found},
    )


def why_llama_would_abort(plan: Plan, bundle: Bundle) -> str:
    """The sizes or shapes on which llama.cpp may abort, in words; or "".

    Other keys, such as epsilon or positions, may be wrong: llama.cpp then computes something else,
    and the comparison shows it.
    """
    if list(plan.files) != list(bundle.files):
        return f"there are {len(bundle.files)} files, expected {len(plan.files)}"
    pairs = [(planned, file) for _, planned, file in pairs_of(plan, bundle)]
    faults = [fault for pair in pairs for fault in _tensor_faults(*pair)]
    faults = faults or list(plan.family.dangers(bundle.files))
    faults = faults or [fault for pair in pairs for fault in _size_faults(*pair)]
    if not faults:
        try:
            found = bundle.model
        except InputError as error:
            return str(error)

        def tables_of(model: Any) -> list[object]:  # noqa: ANN401 - the family's own
            return [(part, tables) for part, tables, _ in plan.family.tables_and_heads(model)]

        if tables_of(plan.model) != tables_of(found) or plan.model.n_levels != found.n_levels:
            faults.append("its tables are not the checkpoint's")
    return listing(faults, separator="; ")


def _size_faults(planned: PlannedFile, file: GgufFile) -> Iterator[str]:
    """Numbers that llama.cpp builds the graph from, the architecture, and the tokens."""
    architecture = planned.keys[0]
    for key in planned.keys:
        is_size = key.type == "u32" and key.name.startswith(f"{architecture.value}.")
        if is_size or key is architecture:
            yield from _key_faults(key, key.value, file)
        elif key.name == TOKENS_KEY:
            tokens = file.keys.get(TOKENS_KEY)
            if not isinstance(tokens, list) or len(tokens) != len(key.value):
                yield f"{TOKENS_KEY} is not a list of {len(key.value)} tokens"


def _check_model(plan: Plan, bundle: Bundle) -> Check:
    """The valle.* keys, read by the reader that the decoders use."""
    try:
        found = bundle.model
    except InputError as error:
        return Check.failure("model description", str(error))
    same_family = plan.family is bundle.family
    differences = (
        plan.family.differences(plan.model, found) if same_family else [bundle.family.title]
    )
    parts = list(bundle.family.tables_and_heads(found))
    n_tables = sum(len(tables) for _, tables, _ in parts)
    n_heads = sum(len(heads) for _, _, heads in parts)
    others = f"not as in the checkpoint: {', '.join(differences)}"
    return Check(
        "model description",
        passed=not differences,
        summary=f"{plural(n_tables, 'table')} and {plural(n_heads, 'head')} "
        + (others if differences else "as in the checkpoint"),
        values={"tables": n_tables, "heads": n_heads},
    )


def check_keys(
    plan: PlannedFile, file: GgufFile, late_values: Mapping[str, object] = MappingProxyType({})
) -> Check:
    deferred = dict(late_values)
    if plan.biases:
        deferred[gguf_keys.BIAS_KEY] = read_biases(plan)
    faults: list[str] = []
    n_compared = 0
    for key in plan.keys:
        is_free = key.name.startswith(_FREE_PREFIXES) and key.name != _EXACT_GENERAL
        if is_free or key.name in _OPTIONAL_KEYS or key.name in gguf_keys.DIGEST_KEYS:
            continue  # quantizing omits the digests
        n_compared += 1
        if key.name in _FREE_KEYS:  # required, with any value
            faults += [] if key.name in file.keys else [f"{key.name} is missing"]
        else:
            faults += _key_faults(key, deferred.get(key.name, key.value), file)
    expected = {*_OPTIONAL_KEYS, *(key.name for key in plan.keys)}
    faults += [
        f"{name} is unexpected"
        for name in file.keys
        if name.startswith("valle.")
        and not name.startswith(QUANTIZE_PREFIX)
        and name not in expected
        and name not in _FREE_KEYS
    ]
    return Check(
        "keys",
        passed=not faults,
        summary=f"{len(faults)} of {plural(n_compared, 'key')} differ: "
        f"{listing(faults, separator='; ')}"
        if faults
        else f"{plural(n_compared, 'key')}, each of the right type and value",
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
        value = float(np.float32(cast("float", value)))  # the nearest value in a file
    return [] if found == value else [f"{key.name} is {found!r:.60}, not {value!r:.60}"]


def check_tensor_table(plan: PlannedFile, file: GgufFile) -> Check:
    """Names and shapes; the types may be those of a quantized file."""
    faults = _tensor_faults(plan, file)
    return Check(
        "tensor table",
        passed=not faults,
        summary=listing(faults, separator="; ")
        or f"{plural(len(plan.tensors), 'tensor')} of the right names and shapes",
        values={"tensors": len(file.tensors), "faults": len(faults)},
    )


def _tensor_faults(plan: PlannedFile, file: GgufFile) -> list[str]:
    return list(file.shape_faults({tensor.name: tensor.shape for tensor in plan.tensors}))


def _check_llama(bundle: Bundle) -> Check:
    """Stock llama.cpp loads the files and counts the same weights."""
    prove_library()  # so that later failures are not this machine's llama.cpp
    counted: dict[str, tuple[int, int]] = {}
    for part, (first, *others) in bundle.family.loaded(bundle.files).items():
        name = f"weights of {part}" if len(bundle.files) > 1 else "weights"
        expected = sum(one.n_elements for file in (first, *others) for one in file.tensors.values())
        try:
            with LlamaModel(
                load_library(),
                first.path,
                further_parts=[file.path for file in others],
                settings=Settings(repack=False),
            ) as model:
                counted[name] = (model.n_params, expected)
        except InputError as error:
            return Check.failure("llama.cpp", str(error))
    faults = [
        f"{name} {found}, not {expected}"
        for name, (found, expected) in counted.items()
        if found != expected
    ]
    words = ", ".join(f"{name} {found:,}" for name, (found, _) in counted.items())
    return Check(
        "llama.cpp",
        passed=not faults,
        summary="; ".join(faults) or f"loads it: {words}",
        values={name: found for name, (found, _) in counted.items()},
    )
