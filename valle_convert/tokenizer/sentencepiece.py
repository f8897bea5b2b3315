"""A SentencePiece `.model` file -> the vocabulary of llama.cpp's `llama` type.

In: the protobuf file of a BPE model with byte fallback. Out: its pieces with their scores. Both
programs do the same with them: they join the two neighbours whose piece has the highest score, the
leftmost first, and spell everything else in bytes.

llama.cpp has no normalizer for this type, and differs from SentencePiece for several options of a
model; those models are rejected, with the reason. So are unigram models: they search for the most
probable split of the whole text, which merging does not find.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import permutations

from valle_convert.errors import InputError
from valle_convert.tokenizer.bpe import MAX_ADDED_TOKENS, can_overlap
from valle_convert.tokenizer.compiled import (
    CompiledTokenizer,
    TokenType,
    check_placeholders,
    refusal,
    short,
)

_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_DEFINED = TokenType.USER_DEFINED
_REMEDY = (
    "Train it again with model_type=bpe, byte_fallback=true, normalization_rule_name=identity and "
    "remove_extra_whitespaces=false."
)


@dataclass(slots=True)
class SentencePieceBpe:
    """The fields of `ModelProto` that matter, with the defaults of its definition."""

    pieces: list[str] = field(default_factory=list)  # with U+2581 for a space
    scores: list[float] = field(default_factory=list)  # higher ones are merged earlier
    types: list[int] = field(default_factory=list)
    model_type: int = 1
    whitespace_as_suffix: bool = False
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    unk_piece: str = "<unk>"
    bos_piece: str = "<s>"
    eos_piece: str = "</s>"
    normalizer: str = ""
    charsmap: bytes = b""
    add_dummy_prefix: bool = True  # whether a space is put before a text
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True

    @property
    def n_ids(self) -> int:
        """The number of ids, which is the number of phoneme rows that a model needs."""
        return len(self.pieces)


def parse_sentencepiece(data: bytes, where: str) -> SentencePieceBpe:
    try:
        proto = _read_proto(data)
    except _MalformedError as error:
        raise InputError(
            f"The tokenizer {where} is not a SentencePiece model: {error}; "
            "give the .model file that SentencePiece wrote."
        ) from None
    problems = list(_find_problems(proto))
    if problems:
        raise refusal(f"The tokenizer {where} cannot be converted", problems, _REMEDY)
    return proto


def compile_sentencepiece(
    model: SentencePieceBpe, placeholders: Sequence[str]
) -> CompiledTokenizer:
    check_placeholders(placeholders, model.pieces)
    whole = {*model.pieces, *placeholders}
    for text in placeholders:
        if _can_be_merged(text, whole):
            raise InputError(
                f"The token text {text!r} of a row that is not text can be merged from pieces of "
                "the vocabulary, so a text could turn into it; name the row differently."
            )
    n_rows = len(placeholders)
    return CompiledTokenizer(
        model="llama",
        pre="default",
        tokens=(*model.pieces, *placeholders),
        token_types=(*map(TokenType, model.types), *([TokenType.UNUSED] * n_rows)),
        scores=(*model.scores, *([0.0] * n_rows)),
        bos_id=model.bos_id,
        eos_id=model.eos_id,
        unk_id=model.unk_id,
        add_bos=True,
        add_eos=True,
        add_space_prefix=model.add_dummy_prefix,
        true_ids=(*range(model.n_ids), *([-1] * n_rows)),
    )


# --- conditions under which llama.cpp gives the same ids ------------------------------------


def _find_problems(proto: SentencePieceBpe) -> Iterator[str]:
    kind = _MODEL_TYPES.get(proto.model_type, str(proto.model_type))
    if kind != "bpe":
        yield f"its model_type is {kind:.20}, expected bpe"
    if proto.normalizer != "identity" or proto.charsmap:
        yield (
            f"its normalizer is {short(proto.normalizer)}, expected 'identity': llama.cpp does "
            "not rewrite text for this type"
        )
    if proto.remove_extra_whitespaces:
        yield "it removes extra spaces (remove_extra_whitespaces), which llama.cpp keeps"
    if not proto.escape_whitespaces:
        yield "it does not write spaces as U+2581 (escape_whitespaces), as llama.cpp does"
    if proto.whitespace_as_suffix:
        yield "it puts the space after a word (treat_whitespace_as_suffix), llama.cpp before"
    of_bytes = {p for p, t in zip(proto.pieces, proto.types, strict=True) if t == TokenType.BYTE}
    missing = [piece for piece in _BYTE_PIECES if piece not in of_bytes]
    if missing:
        yield f"it has no byte fallback ({len(missing)} of 256 byte pieces are missing)"
    for name, id_, piece, wanted in (
        ("unk_id", proto.unk_id, proto.unk_piece, TokenType.UNKNOWN),
        ("bos_id", proto.bos_id, proto.bos_piece, TokenType.CONTROL),
        ("eos_id", proto.eos_id, proto.eos_piece, TokenType.CONTROL),
    ):
        if not 0 <= id_ < len(proto.pieces) or proto.types[id_] != wanted:
            yield f"its {name} is {id_}, expected the id of a piece of type {wanted.name.lower()}"
        elif proto.pieces[id_] != piece:
            yield (
                f"its {name} is {id_}, which is the piece {short(proto.pieces[id_])}, but "
                f"SentencePiece looks for {short(piece)}"
            )
    yield from _find_piece_problems(proto)


def _find_piece_problems(proto: SentencePieceBpe) -> Iterator[str]:
    valid = set(TokenType)
    seen: set[str] = set()
    whole = set(proto.pieces)
    defined = [p for p, t in zip(proto.pieces, proto.types, strict=True) if t == _DEFINED]
    for id_, (piece, kind) in enumerate(zip(proto.pieces, proto.types, strict=True)):
        if not piece or piece in seen:
            yield f"piece {id_}, {short(piece)}, is empty or a duplicate"
        seen.add(piece)
        if kind not in valid:
            yield f"piece {id_}, {short(piece)}, has the unknown type {kind}"
        elif kind == TokenType.UNUSED:
            yield (
                f"piece {id_}, {short(piece)}, has the type unused, which SentencePiece splits "
                "again but llama.cpp does not"
            )
        elif kind == _DEFINED:
            # Cut out before any merge, so no merge can make it.
            if "\u2581" in piece or " " in piece:
                yield (
                    f"the user-defined piece {short(piece)} has a space in it, but llama.cpp looks "
                    "for such pieces before it writes spaces as U+2581"
                )
        elif kind != TokenType.NORMAL and (len(piece) == 1 or _can_be_merged(piece, whole)):
            yield (
                f"piece {id_}, {short(piece)}, has the type {TokenType(kind).name.lower()}, but "
                "llama.cpp would also make it from ordinary text"
            )
    if defined and proto.add_dummy_prefix:
        yield (
            f"it has user-defined pieces ({short(defined[0])}) and add_dummy_prefix, but "
            "llama.cpp puts a space after each of those too"
        )
    if len(defined) > MAX_ADDED_TOKENS:
        yield f"it has {len(defined):,} user-defined pieces, expected at most {MAX_ADDED_TOKENS}"
        return
    for a, b in permutations(defined, 2):
        if can_overlap(a, b):
            yield (
                f"the user-defined pieces {short(a)} and {short(b)} can overlap in a text, where "
                "SentencePiece takes the leftmost and llama.cpp the longest"
            )


def _can_be_merged(text: str, pieces: AbstractSet[str]) -> bool:
    """Whether llama.cpp's merges, which ignore types, could make this text."""
    return any(
        (i == 1 or text[:i] in pieces) and (i == len(text) - 1 or text[i:] in pieces)
        for i in range(1, len(text))
    )


# --- the file's own form: protobuf, only the fields that matter ------------------------------
#
# sentencepiece's generated module is not used: that of release 0.2.3 needs protobuf 7.36.1 or
# later, which excludes every program that requires protobuf 6. It also accepts what is rejected
# here: for a field of a wrong wire type, an unknown model_type or an unknown type of a piece, it
# uses the default.


class _MalformedError(ValueError):
    """The bytes are not a protobuf message of this kind."""


def _read_proto(data: bytes) -> SentencePieceBpe:
    """Read `ModelProto`: pieces are field 1, the trainer's options 2, the normalizer's 3."""
    proto = SentencePieceBpe()
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(_as_bytes(value)))
            proto.pieces.append(_as_text(piece.get(1, b"")))
            proto.scores.append(_as_float(piece.get(2, bytes(4))))
            proto.types.append(_as_int(piece.get(3, 1)))
        elif number == 2:
            options = dict(_fields(_as_bytes(value)))
            proto.model_type = _as_int(options.get(3, 1))
            proto.whitespace_as_suffix = bool(_as_int(options.get(24, 0)))
            proto.unk_id = _as_int(options.get(40, 0))
            proto.bos_id = _as_int(options.get(41, 1))
            proto.eos_id = _as_int(options.get(42, 2))
            proto.unk_piece = _as_text(options.get(45, b"<unk>"))
            proto.bos_piece = _as_text(options.get(46, b"<s>"))
            proto.eos_piece = _as_text(options.get(47, b"</s>"))
        elif number == 3:
            options = dict(_fields(_as_bytes(value)))
            proto.normalizer = _as_text(options.get(1, b""))
            proto.charsmap = _as_bytes(options.get(2, b""))
            proto.add_dummy_prefix = bool(_as_int(options.get(3, 1)))
            proto.remove_extra_whitespaces = bool(_as_int(options.get(4, 1)))
            proto.escape_whitespaces = bool(_as_int(options.get(5, 1)))
    if not proto.pieces:
        raise _MalformedError("it holds no pieces")
    return proto


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: number, and an integer or the bytes of any other value.

    A `dict` of them keeps the last of repeated fields, as protobuf does.
    """
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if wire == 2:
            size, place = _varint(data, place)
        elif wire in {1, 5}:
            size = 8 if wire == 1 else 4
        else:
            raise _MalformedError(f"a field of the unknown kind {wire}")
        if size > len(data) - place:
            raise _MalformedError(f"a field of {size:,} bytes, with {len(data) - place:,} left")
        yield number, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """An integer in groups of 7 bits, the lowest first, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise _MalformedError("it ends in the middle of a number")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise _MalformedError("a number of more than 64 bits")


def _as_int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise _MalformedError("bytes, expected a number")
    # A negative int32 is written as the 64-bit number of the same bits.
    return value - (1 << 64) if value >= 1 << 63 else value


def _as_bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise _MalformedError("a number, expected bytes")
    return value


def _as_text(value: int | bytes) -> str:
    try:
        return _as_bytes(value).decode("utf-8")
    except UnicodeDecodeError:
        raise _MalformedError("a piece that is not UTF-8") from None


def _as_float(value: int | bytes) -> float:
    data = _as_bytes(value)
    if len(data) != 4:
        raise _MalformedError(f"a score of {len(data)} bytes, expected 4")
    score: float = struct.unpack("<f", data)[0]
    if not math.isfinite(score):
        raise _MalformedError(f"the score {score}")
    return score
