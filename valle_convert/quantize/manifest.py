"""The manifest and SHA256SUMS of a folder of quantized files, and how both are checked.

    manifest.json   every file: how it was made, its digest, and one digest for each tensor
    SHA256SUMS      the digests once more, for `sha256sum --check`

Neither holds times or paths, so two runs give the same bytes.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from valle_convert.errors import InputError, ValleConvertError
from valle_convert.files import read_small_file, sha256_of, write_text_atomically
from valle_convert.gguf_file.read import GgufFile
from valle_convert.progress import Progress, silent
from valle_convert.quantize.types import FILE_TYPES
from valle_convert.strict_json import to_json_text
from valle_convert.wording import plural

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
_MAX_BYTES = 64 << 20
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
#: Of a file in the folder of its manifest.
FileName = Annotated[str, msgspec.Meta(pattern=r"\A(?!\.{1,2}\Z)[^/\\\0]+\Z")]
S = TypeVar("S", bound=msgspec.Struct)


class TensorDigest(msgspec.Struct, frozen=True, rename={"kind": "type"}):
    name: str
    kind: str
    shape: tuple[int, ...]
    sha256: Sha256


class ManifestFile(msgspec.Struct, frozen=True, rename={"kind": "type", "n_bytes": "bytes"}):
    name: FileName
    kind: str  # its type, such as Q4_K_M, or `imatrix`
    n_bytes: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Sha256
    source_sha256: Sha256  # of the file that it was made from
    tool: dict[str, str]  # name, version and digest of what made it
    arguments: tuple[str, ...]
    imatrix_sha256: Sha256 | None  # of the importance matrix, if one was used
    tensors: tuple[TensorDigest, ...]  # in file order

    @property
    def is_model(self) -> bool:
        return self.kind in FILE_TYPES


class _Manifest(msgspec.Struct, frozen=True):
    schema_version: Literal[1]
    files: tuple[ManifestFile, ...]


@dataclass(frozen=True)
class Finding:
    name: str
    problem: str


@dataclass(frozen=True)
class ManifestCheck:
    files: tuple[ManifestFile, ...]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return not self.findings

    @property
    def _sizes(self) -> tuple[int, int, int]:
        n_tensors = sum(len(file.tensors) for file in self.files)
        return len(self.files), n_tensors, sum(file.n_bytes for file in self.files)

    def verdict(self) -> str:
        n_files, n_tensors, n_bytes = self._sizes
        sizes = f"{plural(n_files, 'file')}, {plural(n_tensors, 'tensor')}, {n_bytes:,} bytes"
        if self.passed:
            return f"PASSED: {sizes}; all as the manifest and {SUMS} say."
        names = ", ".join(dict.fromkeys(finding.name for finding in self.findings))
        return f"FAILED: {plural(len(self.findings), 'finding')} ({names}) in {sizes}."

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "passed": self.passed,
            "verdict": self.verdict(),
            **dict(zip(("files", "tensors", "bytes"), self._sizes, strict=True)),
            "findings": [asdict(finding) for finding in self.findings],
        }


def write_manifest(folder: Path, files: Iterable[ManifestFile]) -> None:
    """Write manifest.json and SHA256SUMS; files come in the order of their names."""
    ordered = tuple(sorted(files, key=lambda file: file.name))
    write_struct(folder / MANIFEST, _Manifest(1, ordered))
    sums = "".join(f"{file.sha256}  {file.name}\n" for file in ordered)
    write_text_atomically(folder / SUMS, sums, force=True)


def read_manifest(path: Path) -> tuple[ManifestFile, ...]:
    files = read_struct(path, "manifest", _Manifest).files
    if len({file.name for file in files}) != len(files):
        raise InputError(f"{path} names a file twice.")
    return files


def read_struct(path: Path, what: str, kind: type[S]) -> S:
    """Read a JSON file of this program; it is untrusted."""
    data = read_small_file(path, what, _MAX_BYTES)
    try:
        return msgspec.json.Decoder(kind, dec_hook=_array).decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not a {what} of this program: {_plain(error)}.") from error


def _plain(error: Exception) -> str:
    """Which value is wrong, without the pattern that it should match."""
    text, _, place = str(error).partition(" - at `$")
    if place:
        name = place.rstrip("`").lstrip(".").replace("[...]", "")
        return f"the value of {name:.60} is missing or invalid"
    return f"{text.replace('`', ''):.80}"


def write_struct(path: Path, value: msgspec.Struct) -> None:
    plain = msgspec.to_builtins(value, enc_hook=np.ndarray.tolist)
    write_text_atomically(path, to_json_text(plain) + "\n", force=True)


def _array(_kind: type, values: object) -> NDArray[np.float64]:
    return np.array(values, np.float64)


def check_manifest(path: Path, *, progress: Progress = silent) -> ManifestCheck:
    """Compare every file of a folder with its manifest, and SHA256SUMS with both."""
    if path.suffix == ".gguf" and not path.is_dir():
        raise InputError(f"{path} is one file. Give its folder, which has a {MANIFEST}.")
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
    return ManifestCheck(files, tuple(findings))


def unlisted_models(folder: Path, listed: Iterable[str]) -> list[str]:
    """The `.gguf` files of a folder that a manifest does not list."""
    return sorted({path.name for path in folder.glob("*.gguf")} - set(listed))


def tensor_digests(file: GgufFile) -> tuple[TensorDigest, ...]:
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
        tensors = {one.name: one for one in tensor_digests(GgufFile(path, allow_part=True))}
    except InputError as error:
        return [*problems, str(error)]
    different = [one.name for one in file.tensors if tensors.get(one.name) != one]
    if different:
        verb = "differs" if len(different) == 1 else "differ"
        problems.append(f"{plural(len(different), 'tensor')} {verb}: {', '.join(different[:5])}")
    else:
        problems.append("the tensors are the same; only the metadata differs")
    return problems


def _check_sums(folder: Path, files: Sequence[ManifestFile]) -> list[Finding]:
    try:
        text = read_small_file(folder / SUMS, "list of digests", _MAX_BYTES).decode("utf-8")
    except (UnicodeDecodeError, ValleConvertError) as error:
        return [Finding(SUMS, f"cannot be read: {error}")]
    expected = "".join(f"{file.sha256}  {file.name}\n" for file in files)
    if text != expected:
        return [Finding(SUMS, "it differs from the manifest")]
    return []
