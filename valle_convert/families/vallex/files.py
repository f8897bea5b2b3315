"""The GGUF files of a VALL-E X: their keys, written and read back.

out.gguf         ar       the AR, a complete `mpt` model with the vocabulary of symbols
out-nar.gguf     nar      the body of the NAR: everything that its levels share
out-nar-1.gguf   nar-1    the first part of level 1: every key, and the norms; also 2, 3,
...

A level is loaded from its first part and the body (`llama_model_load_from_splits`), which is
mapped once for all of them. docs/gguf-keys.md lists the keys.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from valle_convert.checkpoint import Checkpoint
from valle_convert.errors import InputError
from valle_convert.families.vallex.facts import (
    ACT_SCALES,
    Net,
    VallexModel,
    layer_tensors,
    norm_tensors,
)
from valle_convert.families.vallex.symbols import N_SPECIAL_SYMBOLS, VALLEX_SYMBOLS
from valle_convert.gguf_file import keys as gguf_keys
from valle_convert.gguf_file.header import Key
from valle_convert.gguf_file.keys import PART_KEY, KeyReader
from valle_convert.gguf_file.loadable import graph_dangers, type_dangers, vocabulary_dangers
from valle_convert.gguf_file.plan import TOKEN_EMBEDDING, FileKeys
from valle_convert.gguf_file.read import GgufFile
from valle_convert.model.description import Description
from valle_convert.tokenizer.bpe import AddedToken, PhonemeBpe
from valle_convert.tokenizer.choose import BUILT_IN, TokenizerChoice, TokenizerFile

ARCHITECTURE = "mpt"
FAMILY = "vall-e-x"
LEVEL_KEY = "valle.level"
FACTOR_KEY = "valle.activation_factor"
#: The names of the parts in files.
_AR, _BODY, _LEVEL = "ar", "nar.body", "nar.level"
#: Of every LayerNorm; PyTorch's default, which is in no config of these checkpoints.
_NORM_EPSILON = 1e-5
#: The initial size of the original's table of positions, which grows.
_CONTEXT = 4000
_ATTENTION = {"ar": "text-bidirectional", "nar": "bidirectional"}
_TOKENIZER, _NO_VOCABULARY = "tokenizer.ggml.model", "no_vocab"


# ------------------------------------------------------------------------------- writing


def keys_of_part(part: str) -> dict[str, Any]:
    """The keys of a part's kind and level; only the first part of a level, as `nar-3`, has one."""
    _, _, level = part.partition("-")
    kind = _LEVEL if level else _BODY if part == "nar" else _AR
    return {PART_KEY: kind, LEVEL_KEY: int(level) if level else None}


def file_keys(
    checkpoint: Checkpoint,
    description: Description[VallexModel],
    part: str,
    tokenizer: TokenizerChoice,
) -> FileKeys:
    del checkpoint
    model, (kind, level) = description.model, keys_of_part(part).values()
    who = [
        Key("valle.format_version", gguf_keys.FORMAT_VERSION, "u32"),
        Key(gguf_keys.FAMILY_KEY, FAMILY, "string"),
        Key(PART_KEY, kind, "string"),
    ]
    if kind == _BODY:
        return FileKeys(ARCHITECTURE, model=who, tail=_split_keys(1, description))
    if kind == _LEVEL:
        vocabulary = [Key(_TOKENIZER, _NO_VOCABULARY, "string")]
        return FileKeys(
            ARCHITECTURE,
            graph=_graph_keys(model.nar, model.nar.n_rows),
            vocabulary=vocabulary,
            model=[*who, Key(LEVEL_KEY, level, "u32"), *_net_keys(model, model.nar)],
            tail=_split_keys(0, description),
            languages=model.languages,
        )
    compiled = tokenizer.file.compile(_row_names(model.ar))
    return FileKeys(
        ARCHITECTURE,
        graph=_graph_keys(model.ar, len(compiled.tokens)),
        vocabulary=[Key(name, value, kind) for name, value, kind in compiled.metadata()],
        model=[*who, *_net_keys(model, model.ar)],
        extra_rows=compiled.extra_rows,
        languages=model.languages,
    )


@cache
def symbol_tokenizer() -> TokenizerChoice:
    """The symbols as a tokenizer: one token per character, [UNK] for every other."""
    vocab = {symbol: i for i, symbol in enumerate(VALLEX_SYMBOLS)}
    special = VALLEX_SYMBOLS[:N_SPECIAL_SYMBOLS]
    # A tokenizer.json of Hugging Face, in the form of the project's `bpe_69`.
    document = {
        "version": "1.0",
        "added_tokens": [
            {"id": vocab[name], "content": name, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for name in special
        ],
        "model": {"type": "BPE", "unk_token": "[UNK]", "vocab": vocab, "merges": []},
    }
    data = json.dumps(document).encode()
    bpe = PhonemeBpe(
        vocab=vocab,
        merges=(),
        strings=tuple((symbol,) for symbol in VALLEX_SYMBOLS),
        added_tokens=tuple(AddedToken(vocab[name], name, True) for name in special),
        unk_id=vocab["[UNK]"],
        # Nothing is put around a text, but llama.cpp requires these tokens.
        bos_id=vocab["[CLS]"],
        eos_id=vocab["[SEP]"],
        add_bos=False,
        add_eos=False,
    )
    file = TokenizerFile(BUILT_IN, bpe, data, hashlib.sha256(data).hexdigest())
    return TokenizerChoice(
        file, "built-in", "VALL-E X has one table of symbols", f"its {len(vocab)} symbols are fixed"
    )


def _row_names(net: Net) -> list[str]:
    """A token text for every row after the symbols."""
    text, *others = net.tables
    names = [f"<text:{row}>" for row in range(len(VALLEX_SYMBOLS), text.n_rows)]
    for table in others:
        names += [f"<{table.name}:{row}>" for row in range(table.n_rows)]
    for head in net.heads:
        names += [f"<head.{head.name}:{row}>" for row in range(head.n_rows)]
    return names


def _graph_keys(net: Net, n_tokens: int) -> list[Key]:
    """The keys that llama.cpp builds the graph from: no ALiBi, clamping or position table."""
    return [
        Key("mpt.context_length", _CONTEXT, "u32"),
        Key("mpt.embedding_length", net.n_embd, "u32"),
        Key("mpt.block_count", net.n_layer, "u32"),
        Key("mpt.feed_forward_length", net.n_ff, "u32"),
        Key("mpt.attention.head_count", net.n_head, "u32"),
        Key("mpt.attention.layer_norm_epsilon", _NORM_EPSILON, "f32"),
        Key("mpt.vocab_size", n_tokens, "u32"),
    ]


def _net_keys(model: VallexModel, net: Net) -> Iterator[Key]:
    yield from gguf_keys.codec_keys(model)
    yield Key("valle.languages", list(model.languages), "[string]")
    yield Key("valle.attention", _ATTENTION[net.name], "string")
    yield Key("valle.position_scale.text", net.text_scale, "f32")
    yield Key("valle.position_scale.audio", net.audio_scale, "f32")
    yield Key(FACTOR_KEY, model.activation_factor, "u32")
    yield from gguf_keys.row_keys(net.tables, net.heads)


def _split_keys(number: int, description: Description[VallexModel]) -> Iterator[Key]:
    yield Key("split.no", number, "u16")
    yield Key("split.count", 2, "u16")
    n_tensors = 1 + sum(len(description.contents[part].backbone) for part in ("nar", "nar-1"))
    yield Key("split.tensors.count", n_tensors, "i32")


# ------------------------------------------------------------------------------- reading


def parts_of(ar: GgufFile) -> tuple[str, ...]:
    n_levels = KeyReader(ar.keys).number("valle.codec.levels")
    if not 2 <= n_levels <= 64:
        raise InputError(
            f"{ar.path}: valle.codec.levels is {n_levels}; convert the checkpoint again."
        )
    return ("ar", "nar", *(f"nar-{level}" for level in range(1, n_levels)))


def read_model(files: Mapping[str, GgufFile]) -> VallexModel:
    """The model in the files, with everything checked that llama.cpp relies on."""
    ar, body, *levels = files.values()
    KeyReader.of_converted(body.keys, body.path)
    of_ar = _read_net("ar", ar, ar)
    model = _model_of(ar, of_ar, _read_net("nar", levels[0], body))
    for file in levels:
        other = _model_of(file, of_ar, _read_net("nar", file, body))
        # The graph of one level computes all of them.
        if other != model or _said_of_graph(file) != _said_of_graph(levels[0]):
            raise InputError(
                f"{file.path} describes another model than {ar.path} or {levels[0].path.name}; "
                "convert the checkpoint again."
            )
    reader = KeyReader(ar.keys)
    reader.faults += _model_faults(model, ar, body)
    reader.finish(ar.path)
    return model


def _said_of_graph(file: GgufFile) -> dict[str, Any]:
    prefix = f"{ARCHITECTURE}."
    return {key: value for key, value in file.keys.items() if key.startswith(prefix)}


def _model_of(file: GgufFile, ar: Net, nar: Net) -> VallexModel:
    reader = KeyReader(file.keys)
    model = VallexModel(
        ar=ar,
        nar=nar,
        n_levels=reader.number("valle.codec.levels"),
        codebook_size=reader.number("valle.codec.codebook_size"),
        languages=reader.words("valle.languages"),
        activation_factor=reader.number(FACTOR_KEY),
        codec=reader.codec(),
    )
    reader.finish(file.path)
    return model


def _model_faults(model: VallexModel, ar: GgufFile, body: GgufFile) -> Iterator[str]:
    codes, factor = model.codebook_size, model.activation_factor
    n_text = model.ar.tables[0].n_rows if model.ar.tables else 0
    common = {"text": n_text, "language": len(model.languages)}
    audio = {f"audio.{i}": codes + (i == 0) for i in range(model.n_levels)}
    heads = {f"nar.{i}": codes for i in range(1, model.n_levels)}
    for net, file, tables, wanted in (
        (model.ar, ar, common | {"audio": codes + 2}, {"ar": codes + 1}),
        (model.nar, body, common | audio, heads),
    ):
        if {t.name: t.n_rows for t in net.tables} != tables:
            yield f"the tables of the {net.name} are not {', '.join(tables)}"
        if {h.name: h.n_rows for h in net.heads} != wanted:
            yield f"the heads of the {net.name} are not {', '.join(wanted)}"
        for layer in range(net.n_layer):
            name = f"blk.{layer}.{ACT_SCALES}"
            if not (file.tensors[name].rows() == factor).all():
                yield f"{name} of {file.path.name} is not {factor} throughout"
    if factor < 1 or factor & (factor - 1):
        yield f"{FACTOR_KEY} is {factor}, expected a power of two"


def _read_net(name: str, keys: GgufFile, body: GgufFile) -> Net:
    """One network, after a check for everything that llama.cpp aborts on or computes wrongly.

    `keys` also has the norms, `body` everything else.
    """
    reader = KeyReader.of_converted(keys.keys, keys.path)
    prefix = f"{ARCHITECTURE}."
    embedding = body.tensors.get(TOKEN_EMBEDDING)
    n_rows = embedding.shape[0] if embedding is not None else 0
    net = Net(
        name=name,
        n_embd=reader.number(f"{prefix}embedding_length"),
        n_layer=reader.number(f"{prefix}block_count"),
        n_head=reader.number(f"{prefix}attention.head_count"),
        n_ff=reader.number(f"{prefix}feed_forward_length"),
        tables=reader.tables(n_rows),
        heads=reader.heads(n_rows),
        text_scale=reader.real("valle.position_scale.text"),
        audio_scale=reader.real("valle.position_scale.audio"),
    )
    faults = reader.faults
    known = [key.name.removeprefix(prefix) for key in _graph_keys(net, n_rows)]
    faults += graph_dangers(keys, ARCHITECTURE, known)
    reader.expect(f"{prefix}vocab_size", n_rows)
    # NaN is not larger than 0; the logits show any other wrong value.
    if not reader.real(f"{prefix}attention.layer_norm_epsilon") > 0:
        faults.append("the epsilon is not a number above 0")
    if name == "ar":
        faults += vocabulary_dangers(keys)
    elif [key for key in keys.keys if key.startswith("tokenizer.")] != [_TOKENIZER] or (
        keys.keys[_TOKENIZER] != _NO_VOCABULARY
    ):
        faults.append("it has a vocabulary, expected none")
    if keys.keys.get("valle.attention") != _ATTENTION[name]:
        faults.append(f"valle.attention is not {_ATTENTION[name]!r}")
    if not 1 <= net.n_layer <= 512 or net.n_head < 1 or net.n_embd < 2 or net.n_embd % net.n_head:
        faults.append(f"{net.n_layer} layers, {net.n_head} heads, {net.n_embd} wide")
    if not faults:
        faults += _tensor_faults(net, n_rows, body, keys)
    reader.finish(keys.path)
    return net


def _tensor_faults(net: Net, n_rows: int, shared: GgufFile, norms: GgufFile) -> Iterator[str]:
    of_all: dict[str, tuple[int, ...]] = {TOKEN_EMBEDDING: (n_rows, net.n_embd)}
    of_all |= {one.target: one.shape for one in layer_tensors(net)}
    of_level = {one.target: one.shape for one in norm_tensors(net)}
    files = ((shared, of_all), (norms, of_level))
    for file, expected in files if shared is not norms else [(shared, of_all | of_level)]:
        found = [*file.shape_faults(expected), *type_dangers(file)]
        yield from (f"{file.path.name}: {fault}" for fault in found)
