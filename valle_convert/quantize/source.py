"""What is quantized: a converted file, or a checkpoint, which is converted first.

In: a path, and the checkpoint that quality is measured against. Out: `Source`, with the GGUF
file that llama-quantize reads, its digest, and a scratch folder that is removed at the end.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from valle_convert.checkpoint import Checkpoint, read_checkpoint
from valle_convert.checkpoint.read import sha256_of
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.files import describe_os_error
from valle_convert.gguf_file.keys import SOURCE_SHA256_KEY, is_converted
from valle_convert.gguf_file.plan import plan_gguf
from valle_convert.gguf_file.read import GgufFile, is_gguf
from valle_convert.gguf_file.write import write_plan
from valle_convert.model.description import Description
from valle_convert.progress import Progress

_TYPE_SUFFIX = re.compile(r"[-_.](f16|f32|bf16)$", re.IGNORECASE)


@dataclass(frozen=True)
class Reference:
    """A checkpoint that files are held against, and what its family says of it."""

    checkpoint: Checkpoint
    description: Description


@dataclass(frozen=True)
class Source:
    """The file that is quantized.

    Attributes:
        path: where it is.
        name: its name for metadata and reports.
        header: its header.
        reference: the checkpoint, where there is one.
        digest: of the file, where it is being computed already.
        scratch: a folder that is removed at the end.
    """

    path: Path
    name: str
    header: GgufFile
    reference: Reference | None = None
    digest: Future[str] | None = None
    scratch: Path = Path()

    @property
    def sha256(self) -> str:
        """Of the file."""
        return sha256_of(self.path) if self.digest is None else self.digest.result()

    @property
    def stem(self) -> str:
        """What the names of the quantized files begin with."""
        return _TYPE_SUFFIX.sub("", Path(self.name).stem)

    @property
    def n_weights(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.n_elements for tensor in self.header.tensors.values())


@contextmanager
def open_source(
    path: Path,
    folder: Path | None,
    checkpoint: Checkpoint | None,
    *,
    measure: bool,
    talk: Callable[[str], object],
    progress: Progress,
) -> Iterator[Source]:
    """The source file with everything about it; a checkpoint is converted into the scratch.

    Args:
        path: a converted file or a checkpoint.
        folder: where the scratch goes; None for the system's place, where nothing is written.
        checkpoint: what quality is measured against; a checkpoint as `path` is its own.
        measure: whether quality will be measured, which takes a model of ours.
        talk: is told of a conversion.
        progress: is told of its bytes.

    Raises:
        InputError: the two do not belong together, or the file is of no use.
        EnvironmentFault: the folder cannot be written to.
    """
    from valle_convert.model.families import describe

    from_gguf = is_gguf(path)
    if not from_gguf:
        checkpoint = _own_checkpoint(path, checkpoint)
    reference = None if checkpoint is None else Reference(checkpoint, describe(checkpoint))
    if folder is not None:
        _make_folder(folder)
    with _scratch(folder) as scratch, ThreadPoolExecutor(max_workers=1) as pool:
        name = path.name
        if checkpoint is not None and not from_gguf:
            path, name = scratch / "source.gguf", f"{path.stem}.gguf"
            talk(f"converting {checkpoint.path.name} first")
            write_plan(plan_gguf(checkpoint), path, progress=progress)
        header = GgufFile(path)
        if checkpoint is not None and from_gguf:
            _check_same_checkpoint(name, header, checkpoint)
        if measure and not is_converted(header.keys):
            raise InputError(
                f"{path} is no converted VALL-E checkpoint, so its quality cannot be measured; "
                "give --no-measure to quantize it all the same."
            )
        yield Source(path, name, header, reference, pool.submit(sha256_of, path), scratch)


def _own_checkpoint(source: Path, given: Checkpoint | None) -> Checkpoint:
    """The checkpoint that the source itself is."""
    if given is None:
        return read_checkpoint(source)
    if not given.path.samefile(source):
        raise InputError(
            f"{source} is a checkpoint, which its files are held against; leave out --checkpoint "
            f"{given.path}."
        )
    return given


def _check_same_checkpoint(name: str, header: GgufFile, checkpoint: Checkpoint) -> None:
    said = header.keys.get(SOURCE_SHA256_KEY)
    found = sha256_of(checkpoint.path)
    if said is not None and said != found:
        raise InputError(
            f"{name} was converted from another checkpoint than {checkpoint.path}: its "
            f"source has sha256 {said}, and this one {found}; give the right one, or leave out "
            "--checkpoint."
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(
            f"The output {folder} is a file, where a folder is expected; give one that ends in "
            ".gguf for a single file."
        ) from None
    except OSError as error:
        raise EnvironmentFault(
            f"The folder {folder} cannot be made: {describe_os_error(error)}."
        ) from error


@contextmanager
def _scratch(folder: Path | None) -> Iterator[Path]:
    try:
        scratch = tempfile.TemporaryDirectory(
            prefix=".valle-quantize-", dir=folder, ignore_cleanup_errors=True
        )
    except OSError as error:
        raise EnvironmentFault(
            f"No file can be made in {folder}: {describe_os_error(error)}; choose another folder."
        ) from error
    with scratch as name:
        yield Path(name)
