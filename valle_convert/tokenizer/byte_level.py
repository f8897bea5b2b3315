"""The printable form that GPT-2 style vocabularies give to bytes.

Such a vocabulary stores text as characters for UTF-8 bytes: the printable characters of Latin-1
stand for their own byte, and the other 68 bytes (controls, space, 7F to A0, AD) get U+0100, U+0101,
... in order. A space becomes `Ġ`, `ˈ` (CB 88) becomes `ËĪ`.
"""

from itertools import count


def _alphabet() -> tuple[str, ...]:
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = map(chr, count(0x100))
    return tuple(chr(byte) if byte in printable else next(others) for byte in range(256))


BYTE_TO_CHARACTER = _alphabet()
CHARACTER_TO_BYTE = {character: byte for byte, character in enumerate(BYTE_TO_CHARACTER)}


def to_byte_level(data: str | bytes) -> str:
    """Spell text (as UTF-8) or bytes with one printable character a byte."""
    if isinstance(data, str):
        data = data.encode("utf-8")
    return "".join([BYTE_TO_CHARACTER[byte] for byte in data])


def from_byte_level(piece: str) -> bytes | None:
    """The bytes that a piece spells, or None if a character spells none."""
    try:
        return bytes(CHARACTER_TO_BYTE[character] for character in piece)
    except KeyError:
        return None


def readable(piece: str) -> str:
    """A piece for a reader: the text it spells, or `<E2 80>` for a part of a character."""
    data = from_byte_level(piece)
    if data is None:
        return piece
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return f"<{data.hex(' ').upper()}>"
