"""What lies in a folder of quantized files: a manifest, SHA256SUMS, and how both are checked.

    manifest.json   every file: how it was made, its digest, and one digest for each tensor
    SHA256SUMS      the digests once more, for `sha256sum --check`

Neither holds times or paths, so two runs give the same bytes. docs/quantize.md describes
the fields.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from valle_convert.errors import InputError, ValleConvertError
from valle_convert.files import (
    read_json_object,
    read_small_file,
    sha256_of,
    write_text_atomically,
)
from valle_convert.gguf_file.read import GgufFile
from valle_convert.progress import Progress, silent
from valle_convert.quantize.types import FILE_TYPES
from valle_convert.strict_json import to_json_text
from valle_convert.wording import plural

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
SCHEMA_VERSION = 1
_MAX_BYTES = 64 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
Outcome = Literal["passed", "failed", "not judged"]


@dataclass(frozen=True)
class TensorDigest:
    """A tensor of a file, and the SHA-256 of its data."""

    name: str
    kind: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class Judgement:
    """What the last run that judged a file found.

    Attributes:
        outcome: "not judged" also where that run has not finished.
        limits: what the file was held to, by the names of a report's `limits`.
    """

    outcome: Outcome = "not judged"
    limits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ManifestFile:
    """A file of the manifest.

    Attributes:
        kind: its type, such as Q4_K_M, or `imatrix`, or `tensor-types`.
        source_sha256: of the file that it was made from.
        tool: name, version and digest of what made it.
        imatrix_sha256: of the importance matrix; None where none was used.
        tensors: in file order; none where it is no GGUF file.
    """

    name: str
    kind: str
    n_bytes: int
    sha256: str
    source_sha256: str
    tool: Mapping[str, str]
    arguments: tuple[str, ...]
    imatrix_sha256: str | None
    tensors: tuple[TensorDigest, ...]
    judgement: Judgement = Judgement()

    @property
    def is_model(self) -> bool:
        """Whether it is no importance matrix and no list."""
        return self.kind in FILE_TYPES

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "type": self.kind,
            "bytes": self.n_bytes,
            "sha256": self.sha256,
            "source_sha256": self.source_sha256,
            "tool": dict(self.tool),
            "arguments": list(self.arguments),
            "imatrix_sha256": self.imatrix_sha256,
            "verdict": asdict(self.judgement) if self.is_model else None,
            "tensors": [
                {"type": values.pop("kind"), **values} for values in map(asdict, self.tensors)
            ],
        }


@dataclass(frozen=True)
class Finding:
    """What is wrong with a file of a manifest."""

    name: str
    problem: str


@dataclass(frozen=True)
class ManifestCheck:
    """The result of checking a folder against its manifest."""

    n_files: int
    n_tensors: int
    n_bytes: int
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether every file is what the manifest says."""
        return not self.findings

    def verdict(self) -> str:
        files, tensors = plural(self.n_files, "file"), plural(self.n_tensors, "tensor")
        sizes = f"{files}, {tensors}, {self.n_bytes:,} bytes"
        if self.passed:
            return f"PASSED: {sizes}; all as the manifest and {SUMS} say."
        names = ", ".join(dict.fromkeys(finding.name for finding in self.findings))
        return f"FAILED: {plural(len(self.findings), 'finding')} ({names}) in {sizes}."

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "passed": self.passed,
            "verdict": self.verdict(),
            "files": self.n_files,
            "tensors": self.n_tensors,
            "bytes": self.n_bytes,
            "findings": [asdict(finding) for finding in self.findings],
        }


def write_manifest(folder: Path, files: Sequence[ManifestFile]) -> None:
    """Write manifest.json and SHA256SUMS; files come in the order of their names."""
    ordered = sorted(files, key=lambda file: file.name)
    value = {
        "schema_version": SCHEMA_VERSION,
        "files": [file.to_json() for file in ordered],
    }
    write_text_atomically(folder / MANIFEST, to_json_text(value) + "\n", force=True)
    sums = "".join(f"{file.sha256}  {file.name}\n" for file in ordered)
    write_text_atomically(folder / SUMS, sums, force=True)


def read_manifest(path: Path) -> tuple[ManifestFile, ...]:
    """Read a manifest; it is untrusted."""
    value = read_json_object(path, "manifest", _MAX_BYTES)
    if value.get("schema_version") != SCHEMA_VERSION:
        raise InputError(f"{path} is no manifest of schema version {SCHEMA_VERSION}.")
    try:
        files = tuple(_parse(entry) for entry in value["files"])
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} is no manifest of this program: {error!r:.200}.") from error
    names = [file.name for file in files]
    if len(set(names)) != len(names):
        raise InputError(f"{path} names a file twice.")
    return files


def check_manifest(
    path: Path, *, require_passed: bool = False, progress: Progress = silent
) -> ManifestCheck:
    """Hold every file of a folder against its manifest, and SHA256SUMS against both.

    Args:
        progress: shows the bytes read.
    """
    manifest = path / MANIFEST if path.is_dir() else path
    files = read_manifest(manifest)
    folder = manifest.parent
    findings: list[Finding] = []
    with progress("checking", sum(file.n_bytes for file in files), "B") as advance:
        for file in files:
            findings += [Finding(file.name, problem) for problem in _problems(folder, file)]
            advance(file.n_bytes)
    findings += _check_sums(folder, files)
    findings += [
        Finding(name, "no manifest lists it")
        for name in unlisted_models(folder, [file.name for file in files])
    ]
    if require_passed:
        findings += _unpassed(files)
    return ManifestCheck(
        n_files=len(files),
        n_tensors=sum(len(file.tensors) for file in files),
        n_bytes=sum(file.n_bytes for file in files),
        findings=tuple(findings),
    )


def _unpassed(files: Sequence[ManifestFile]) -> Iterator[Finding]:
    models = [file for file in files if file.is_model]
    if not models:
        yield Finding(MANIFEST, "it lists no model that could have passed")
    for file in models:
        judgement = file.judgement
        if judgement.outcome != "passed":
            limits = ", ".join(f"{name} {value:g}" for name, value in judgement.limits.items())
            yield Finding(file.name, f"{judgement.outcome}{limits and f' (limits: {limits})'}")


def unlisted_models(folder: Path, listed: Iterable[str]) -> list[str]:
    """The `.gguf` files of a folder that a manifest does not list."""
    return sorted({path.name for path in folder.glob("*.gguf")} - set(listed))


def tensor_digests(file: GgufFile) -> tuple[TensorDigest, ...]:
    """The digest of each tensor of a file, in the order of the data."""
    return tuple(
        TensorDigest(
            tensor.name,
            tensor.ggml_type.name,
            tensor.shape,
            hashlib.sha256(tensor.data.data).hexdigest(),
        )
        for tensor in file.tensors.values()
    )


def _problems(folder: Path, file: ManifestFile) -> list[str]:
    path = folder / file.name
    if not os.path.isfile(path):  # noqa: PTH113 - no exception where a name is too long
        return ["the file is missing"]
    size = path.stat().st_size
    if size != file.n_bytes:
        return [f"{size:,} bytes, where the manifest says {file.n_bytes:,}"]
    found = sha256_of(path)
    if found == file.sha256:
        return []
    problems = [f"sha256 {found}, where the manifest says {file.sha256}"]
    if not file.tensors:
        return problems
    try:
        there = tensor_digests(GgufFile(path, allow_part=True))
        tensors = {tensor.name: tensor for tensor in there}
    except InputError as error:
        return [*problems, str(error)]
    different = [one.name for one in file.tensors if tensors.get(one.name) != one]
    if different:
        verb = "differs" if len(different) == 1 else "differ"
        problems.append(f"{plural(len(different), 'tensor')} {verb}: {', '.join(different[:5])}")
    else:
        problems.append("the tensors are the same, so what differs is the metadata")
    return problems


def _check_sums(folder: Path, files: Sequence[ManifestFile]) -> list[Finding]:
    try:
        text = read_small_file(folder / SUMS, "list of digests", _MAX_BYTES).decode("utf-8")
    except (UnicodeDecodeError, ValleConvertError) as error:
        return [Finding(SUMS, f"cannot be read: {error}")]
    expected = "".join(f"{file.sha256}  {file.name}\n" for file in files)
    if text != expected:
        return [Finding(SUMS, "it does not say what the manifest says")]
    return []


def _parse(entry: Mapping[str, Any]) -> ManifestFile:
    name = entry["name"]
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise ValueError(f"the name {name!r:.60} is not that of a file in its folder")
    n_bytes = entry["bytes"]
    if not isinstance(n_bytes, int) or n_bytes < 0:
        raise ValueError(f"{name} has {n_bytes!r:.40} bytes")
    imatrix = entry["imatrix_sha256"]
    return ManifestFile(
        name=name,
        kind=_text(entry["type"]),
        n_bytes=n_bytes,
        sha256=_digest(entry["sha256"]),
        source_sha256=_digest(entry["source_sha256"]),
        tool={_text(key): _text(value) for key, value in entry["tool"].items()},
        arguments=tuple(map(_text, entry["arguments"])),
        imatrix_sha256=None if imatrix is None else _digest(imatrix),
        tensors=tuple(
            TensorDigest(
                _text(one["name"]),
                _text(one["type"]),
                tuple(map(int, one["shape"])),
                _digest(one["sha256"]),
            )
            for one in entry["tensors"]
        ),
        judgement=_judgement(entry["verdict"]),
    )


def _judgement(value: Mapping[str, Any] | None) -> Judgement:
    if value is None:
        return Judgement()
    outcome = value["outcome"]
    if outcome not in get_args(Outcome):
        raise ValueError(f"{outcome!r:.40} is no verdict")
    limits = {_text(name): float(x) for name, x in value["limits"].items()}
    if not all(map(math.isfinite, limits.values())):
        raise ValueError("a limit is not finite")
    return Judgement(outcome, limits)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _digest(value: object) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"{value!r:.80} is no SHA-256")
    return value
