"""Names of quantized files, and their `general.*` keys.

The GGUF naming convention has the base name, the number of weights, the version and the type:
`VALL-E-ar-nar-len-229M-v6.0-Q8_0.gguf`. The keys of such a file say the same, and add the base
model and who quantized it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from valle_convert.errors import InputError
from valle_convert.gguf_file.header import Key

Naming = Literal["type", "convention"]
_FAMILY = "VALL-E"
_NOT_IN_NAMES = re.compile(r"[^0-9A-Za-z._]+")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_HUB = "https://huggingface.co"
#: Keys that tell with which identity a file was made.
IDENTITY_KEYS = ("general.basename", "general.quantized_by", "general.base_model.0.repo_url")


def check_repository(name: str, words: str) -> None:
    """Refuse a name that is not `OWNER/NAME`, as of a model on the hub."""
    if not _REPOSITORY.fullmatch(name):
        raise InputError(f"{words} is no OWNER/NAME of a model on the hub, such as ecker/vall-e.")


@dataclass(frozen=True)
class Identity:
    """How files are named, and what the user says in them; None for what the source says."""

    naming: Naming = "type"
    quantized_by: str | None = None
    base_model: str | None = None

    def __post_init__(self) -> None:
        if self.base_model is not None:
            check_repository(self.base_model, f"--base-model {self.base_model}")

    def keys(self, source: Mapping[str, Any]) -> Iterator[Key]:
        """The `general.*` keys that follow, for files of a source with these keys."""
        if self.naming == "convention":
            yield Key("general.basename", base_name(source), "string")
            version = _version(source)
            if version is not None:
                yield Key("general.version", version, "string")
        if self.quantized_by is not None:
            yield Key("general.quantized_by", self.quantized_by, "string")
        base = self.base_model or source.get("general.source.huggingface.repository")
        wanted = self.base_model is not None or self.naming == "convention"
        if wanted and isinstance(base, str) and _REPOSITORY.fullmatch(base):
            organization, name = base.split("/")
            yield Key("general.base_model.count", 1, "u32")
            yield Key("general.base_model.0.name", name, "string")
            yield Key("general.base_model.0.organization", organization, "string")
            yield Key("general.base_model.0.repo_url", f"{_HUB}/{base}", "string")


def base_name(source: Mapping[str, Any]) -> str:
    """`general.basename`, else made from the model's name."""
    said = source.get("general.basename")
    if isinstance(said, str) and said:
        return _clean(said)
    name = source.get("general.name")
    words = _clean(name) if isinstance(name, str) else ""
    if words.lower().replace("-", "").startswith("valle"):
        return words
    return f"{_FAMILY}-{words}" if words else _FAMILY


def convention_name(source: Mapping[str, Any], kind: str) -> str:
    """The name of a file by the GGUF naming convention, without its extension."""
    from gguf.utility import naming_convention

    size = source.get("general.size_label")
    finetune = source.get("general.finetune")
    name: str = naming_convention(
        None,
        base_name(source),
        _clean(finetune) if isinstance(finetune, str) else None,
        _version(source),
        _clean(size) if isinstance(size, str) else None,
        kind,
    )
    return name


def _version(source: Mapping[str, Any]) -> str | None:
    """The file's version, or that of the training project's checkpoint as `vN.0`."""
    said, number = source.get("general.version"), source.get("valle.checkpoint_version")
    if isinstance(said, str) and said:
        words = _clean(said)
        return words if words[:1] in ("v", "V") else f"v{words}"
    return f"v{number}.0" if isinstance(number, int) else None


def _clean(text: str) -> str:
    return _NOT_IN_NAMES.sub("-", text).strip("-")
