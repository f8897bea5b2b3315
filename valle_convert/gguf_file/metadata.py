"""The `general.*` keys, from the user or derived.

The user gives them in a JSON file with the names of the GGUF specification, with or without
`general.`; a name given on the command line overrides the file.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from valle_convert.checkpoint import Checkpoint
from valle_convert.errors import InputError
from valle_convert.files import read_json_object, valid_utf8
from valle_convert.gguf_file.header import Key
from valle_convert.wording import listing

#: Names of the GGUF specification that a user may set, with their type.
ALLOWED: dict[str, str] = dict.fromkeys(
    """
    name author version organization basename finetune description license license.name
    license.link url doi uuid repo_url source.url source.doi source.uuid source.repo_url
    source.huggingface.repository
    """.split(),
    "string",
) | {"tags": "[string]", "languages": "[string]"}
_MAX_BYTES = 1 << 20
_DEFAULT_TAGS = ["text-to-speech", "vall-e"]


@dataclass(frozen=True)
class GeneralMetadata:
    """Values by name, without the `general.` in front."""

    values: Mapping[str, Any] = field(default_factory=dict)
    where: str = "the metadata"

    def __post_init__(self) -> None:
        faults: list[str] = []
        for name, value in self.values.items():
            kind = ALLOWED.get(name)
            if kind is None:
                faults.append(f"{name!r:.40} is not one of {listing(ALLOWED)}")
            elif kind == "string" and (not isinstance(value, str) or not value.strip()):
                faults.append(f"{name} is {value!r:.40}, expected some text")
            elif kind == "[string]" and (
                not isinstance(value, list)
                or not value
                or any(not isinstance(item, str) for item in value)
            ):
                faults.append(f"{name} is {value!r:.40}, expected a list of strings")
            else:
                texts = [value] if isinstance(value, str) else value
                if any(valid_utf8(text) != text for text in texts):
                    faults.append(f"{name} is not valid UTF-8")
        if faults:
            raise InputError(f"{self.where}: {listing(faults, separator='; ')}.")

    @classmethod
    def read(cls, path: Path | None, name: str | None = None) -> Self:
        """The values of a JSON file and the model's name, if given."""
        values: dict[str, Any] = {}
        if path is not None:
            loaded = read_json_object(path, "metadata file", _MAX_BYTES, pipe=True)
            values = {key.removeprefix("general."): value for key, value in loaded.items()}
        if name is not None:
            values["name"] = name
        return cls(values, f"The metadata file {path}" if path else "The option --name")

    def keys(
        self, checkpoint: Checkpoint, languages: Sequence[str], n_weights: int
    ) -> Iterator[Key]:
        """All `general.*` keys except architecture and file type; missing values are derived."""
        values: dict[str, Any] = {
            "name": checkpoint.config.get("name") or checkpoint.title,
            "tags": _DEFAULT_TAGS,
        }
        if checkpoint.hub is not None:
            values["source.huggingface.repository"] = checkpoint.hub.repository
        spoken = [name for name in languages if len(name) == 2]
        if spoken:
            values["languages"] = spoken
        values |= self.values
        yield Key("general.type", "model", "string")
        for name, kind in ALLOWED.items():
            if name in values:
                value = values[name]
                yield Key(f"general.{name}", str(value) if kind == "string" else value, kind)
        yield Key("general.size_label", size_label(n_weights), "string")


def size_label(n_weights: int) -> str:
    """A number of weights in two digits or more, as the gguf package writes it: `116M`, `1.2B`."""
    units = ((1e12, "T"), (1e9, "B"), (1e6, "M"))
    unit, letter = next((one for one in units if n_weights > one[0]), (1e3, "K"))
    scaled = n_weights * (1 / unit)
    return f"{scaled:.{max(2 - len(str(round(scaled)).lstrip('0')), 0)}f}{letter}"
