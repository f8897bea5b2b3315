"""Mutations of bytes, fields, trees and pickles.

Every function draws from the `random.Random` that it is given and from nothing else, so that an
input is made again by its seed.
"""

from __future__ import annotations

import copy
import json
import pickletools
from collections.abc import Sequence
from random import Random
from typing import Any

Json = Any

#: Counts, lengths and offsets that somebody may have thought of: around powers of two and limits.
NUMBERS = (
    *range(10), 12, 13, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 77, 100, 127, 128, 255, 256,
    1 << 14, (1 << 15) - 1, 1 << 15, (1 << 16) - 1, 1 << 16, 1 << 17, 1 << 20, 1 << 23, 1 << 24,
    1 << 27, 100_000_000, (1 << 31) - 1, 1 << 31, (1 << 32) - 32, (1 << 32) - 1, 1 << 32, 1 << 40,
    (1 << 59) + 1, 1 << 61, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 64, (1 << 64) - 1,
)  # fmt: skip
#: Texts that mean something to one program or another.
TEXTS = (
    "", " ", "\0", "a\0b", ".", "..", "/", "../x", "/dev/null", "C:\\x", "~", "a/b", "\ud800",
    "\udfff", "\uffff", "\u2028", "\x1b[2J", "\r\n", "%s%n", "{0.__class__}", "${x}", "None", "nan",
    "-1", "1e999", "true", "x" * 64, "x" * 300, "\u2581", "<0x00>", "<unk>", "<s>", "</s>", "F32",
    "BF16", "F8_E4M3", "I64", "gemma", "llama", "general.alignment", "split.count", "__metadata__",
    "__class__", "__proto__", "data.pkl", "zw\u00f6lf", "\U0001f600",
)  # fmt: skip
VALUES: tuple[Json, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 8, 64, 255, 1 << 31, 1 << 53, 1 << 63, -(1 << 63), 1 << 64,
    10**30, 10**400, 0.0, -0.0, 0.5, 1e-300, 1e300, 1e999, -1e999, float("nan"), [], {}, [[]],
    [None], {"": None}, [1, "a"], {"a": {"a": {}}}, [0] * 300,
)  # fmt: skip
_MAX_BYTES = 1 << 20


def number_bytes(rng: Random, size: int) -> bytes:
    """A number of that many bytes, little endian: a known one, one near it, or any."""
    bits = 8 * size
    match rng.randrange(4):
        case 0:
            value = rng.getrandbits(bits)
        case 1:
            value = rng.choice(NUMBERS) + rng.randrange(-2, 3)
        case _:
            value = rng.choice(NUMBERS)
    return (value & ((1 << bits) - 1)).to_bytes(size, "little")


def damage_bytes(rng: Random, data: bytes, most: int = 4) -> bytes:
    """A few changes of single places or stretches."""
    for _ in range(rng.randrange(1, most + 1)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + min(rng.choice((1, 1, 2, 4, 8, 16, 64)), 1 + len(data) // 2))
        match rng.randrange(9):
            case 0 if at < len(data):
                data = data[:at] + bytes((data[at] ^ (1 << rng.randrange(8)),)) + data[at + 1 :]
            case 1:
                data = data[:at] + rng.randbytes(end - at) + data[end:]
            case 2:
                data = data[:at] + data[end:]
            case 3:
                data = data[:at] + data[at:end] * rng.choice((2, 2, 3, 30)) + data[end:]
            case 4:
                size = rng.choice((1, 2, 4, 8))
                data = data[:at] + number_bytes(rng, size) + data[at + size :]
            case 5:
                data = data[:at] + rng.choice(TEXTS).encode("utf-8", "surrogatepass") + data[at:]
            case 6 if rng.randrange(3) == 0:
                data = data[:at]
            case 7:
                data += rng.randbytes(rng.choice((1, 3, 4, 8, 32)))
            case _:
                other = rng.randrange(len(data) + 1)
                data = data[:at] + data[other : other + end - at] + data[end:]
    return data[:_MAX_BYTES]


def damage_fields(rng: Random, fields: Sequence[bytes], most: int = 3) -> bytes:
    """Whole fields replaced, left out, doubled or exchanged; seldom cut off afterwards."""
    changed = list(fields)
    for _ in range(rng.randrange(1, most + 1)):
        at = rng.randrange(len(changed))
        match rng.randrange(8):
            case 0 | 1 | 2 | 3 if len(changed[at]) in {1, 2, 4, 8}:
                changed[at] = number_bytes(rng, len(changed[at]))
            case 4:
                changed[at] = b""
            case 5:
                changed[at] *= 2
            case 6:
                other = rng.randrange(len(changed))
                changed[at], changed[other] = changed[other], changed[at]
            case _:
                changed[at] = damage_bytes(rng, changed[at], 1)
    data = b"".join(changed)
    if rng.randrange(8) == 0:
        return damage_bytes(rng, data, 2)
    return data[: rng.randrange(len(data) + 1)] if rng.randrange(12) == 0 else data


# ---------------------------------------------------------------------------------- trees


def damage_tree(rng: Random, tree: Json, most: int = 3) -> Json:
    """A tree of dicts and lists with other values, keys and branches; the old one is changed."""
    holder = [tree]
    for _ in range(rng.randrange(1, most + 1)):
        places = _places(holder, rng)
        parent, key = rng.choice(places)
        value = parent[key]
        match rng.randrange(10):
            case 0 | 1 | 2:
                parent[key] = _value(rng, value)
            case 3 if isinstance(parent, dict):
                del parent[key]
            case 4 if isinstance(parent, dict):
                other = rng.choice((*parent, *TEXTS, str(key) + "x"))
                parent[other] = parent.pop(key)
            case 5 if isinstance(value, list) and value:
                value.insert(rng.randrange(len(value) + 1), rng.choice(value))
            case 6 if isinstance(value, list) and value:
                del value[rng.randrange(len(value))]
            case 7:
                place, other_key = rng.choice(places)
                parent[key] = place[other_key] if place is not parent else _value(rng, value)
            case 8:
                parent[key] = [value] if rng.randrange(2) else {"x": value}
            case _:
                parent[key] = _value(rng, value)
    return holder[0]


def damage_json(rng: Random, text: str | bytes, most: int = 3) -> bytes:
    return tree_bytes(rng, damage_tree(rng, json.loads(text), most))


def tree_bytes(rng: Random, tree: Json) -> bytes:
    """JSON of a tree; seldom with what a writer of JSON would never write."""
    try:
        text = json.dumps(tree, ensure_ascii=bool(rng.randrange(2)))
    except (ValueError, RecursionError):  # a branch was put below itself
        text = "[" * 5000
    match rng.randrange(40):
        case 0:
            text = "[" * rng.choice((10, 2000, 100_000)) + text
        case 1:
            at = text.find('": ')
            text = text.replace("{", "{" + text[1 : at + 3] + "1, ", 1) if at > 0 else text
        case 2:
            text = text.replace("0", "0" * rng.choice((2, 5000)), 1)
        case 3:
            text = "\ufeff" + text
        case 4:
            text = text.replace(":", "=" if rng.randrange(2) else "::", 1)
        case _:
            pass
    data = text.encode("utf-8", "surrogatepass")
    return damage_bytes(rng, data, 2) if rng.randrange(10) == 0 else data


def _value(rng: Random, old: Json) -> Json:
    """Another value: of the same kind more often than not."""
    if isinstance(old, bool):
        return not old if rng.randrange(2) else _known(rng)
    if isinstance(old, int) and rng.randrange(3):
        return rng.choice((old + 1, old - 1, -old, old * 2, 0, rng.choice(NUMBERS)))
    if isinstance(old, str) and rng.randrange(3):
        return rng.choice((*TEXTS, old + "x", old[1:], old * 2))
    kind = rng.randrange(3)
    return _known(rng) if kind else rng.choice(TEXTS)


def _known(rng: Random) -> Json:
    """A value of the list; a copy, since what is put into a tree is damaged further."""
    return copy.deepcopy(rng.choice(VALUES))


def _places(tree: Json, rng: Random) -> list[tuple[Any, Any]]:
    """Every place of a tree as container and key; some of those of a large container."""
    found: list[tuple[Any, Any]] = []
    waiting: list[Json] = [tree]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if not isinstance(one, dict | list) or id(one) in seen:
            continue
        seen.add(id(one))
        keys = list(one) if isinstance(one, dict) else list(range(len(one)))
        if len(keys) > 40:
            keys = rng.sample(keys, 40)
        for key in keys:
            found.append((one, key))
            waiting.append(one[key])
    return found


# --------------------------------------------------------------------------------- pickles

#: What attackers write: the globals, and opcodes that build, call or look something up.
_GLOBALS = (
    b"cposix\nsystem\n", b"cbuiltins\neval\n", b"cbuiltins\ngetattr\n", b"cos\nsystem\n",
    b"ctorch\nload\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"cnumpy\nload\n",
    b"ctorch.serialization\n_get_restore_location\n", b"cpkgutil\nresolve_name\n",
    b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n", b"ctorch\nHalfStorage\n",
    b"ctorch\nBFloat16Storage\n", b"ctorch\nQInt8Storage\n", b"ctorch\nSize\n",
    b"ctorch.nn.parameter\nParameter\n", b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch._utils\n_rebuild_sparse_tensor\n", b"ctorch\nTensor\n", b"ctorch\ndevice\n",
    b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n", b"ctorch.storage\nUntypedStorage\n",
    b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ctorch._utils\n_rebuild_wrapper_subclass\n",
)  # fmt: skip
_OPCODES = (
    b"R", b"b", b"\x81", b"\x92", b"i", b"o", b"Q", b".", b"(", b"t", b"d", b"]", b"}", b"a", b"e",
    b"s", b"u", b"0", b"1", b"2", b"\x85", b"\x86", b"\x87", b"\x88", b"\x89", b"\x93", b"\x94",
    b"N", b"K\xff", b"M\xff\xff", b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
    b"\x8b\xff\xff\xff\x7f", b"G" + b"\x7f\xf0" + bytes(6), b"h\xff", b"j\xff\xff\xff\x7f",
    b"r\xff\xff\xff\x7f", b"q\0", b"h\0", b"\x80\x02", b"\x80\x04", b"\x80\xff", b"\x95" + bytes(8),
    b"\x95" + b"\xff" * 8, b"\x82\x01", b"X\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 8, b"B\0\0\0\0",
    b"X\x04\0\0\0echo", b"U\x02id", b"I99999999999999999999\n", b"I01\n", b"Lx\n", b"F1e999\n",
    b"S'x'\n", b"P7\n", b"\x98", b"\x97", b"\x8f", b"\x90", b"\x91",
)  # fmt: skip


def pickle_opcodes(data: bytes) -> list[bytes]:
    """The opcodes of the first pickle in some bytes, each with its argument."""
    starts = [position for _, _, position in pickletools.genops(data) if position is not None]
    return [data[a:b] for a, b in zip(starts, [*starts[1:], starts[-1] + 1], strict=True)]


def damage_pickle(rng: Random, opcodes: Sequence[bytes]) -> bytes:
    """Opcodes left out, doubled, moved, added, and their arguments changed."""
    changed = list(opcodes)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(changed)) if changed else 0
        match rng.randrange(9):
            case 0:
                changed[at : at + 1] = []
            case 1:
                changed.insert(at, rng.choice(_GLOBALS))
            case 2 | 3:
                changed.insert(at, rng.choice(_OPCODES))
            case 4 if changed:
                changed.insert(at, rng.choice(changed))
            case 5 if changed:
                other = rng.randrange(len(changed))
                changed[at], changed[other] = changed[other], changed[at]
            case 6 if changed:
                changed[at] = changed[at][:1] + damage_bytes(rng, changed[at][1:], 1)
            case 7 if changed and changed[at][:1] == b"c":
                changed[at] = rng.choice(_GLOBALS)
            case _:
                changed[at : at + 1] = [rng.choice(_OPCODES)]
    data = b"".join(changed)
    return damage_bytes(rng, data, 2) if rng.randrange(6) == 0 else data
