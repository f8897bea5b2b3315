"""The input: a converted file, or a checkpoint, which is converted first.

In: a path, and the checkpoint that quality is measured against. Out: `Origin`, with the GGUF
file that will be quantized, its digest, and a scratch folder that is gone at the end.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from valle_convert.checkpoint import Checkpoint, read_checkpoint
from valle_convert.checkpoint.read import sha256_of
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.files import describe_os_error
from valle_convert.gguf_file.header import read_header
from valle_convert.gguf_file.keys import SOURCE_SHA256_KEY, is_converted
from valle_convert.quantize.options import Listener, Options
from valle_convert.quantize.plan import Source

if TYPE_CHECKING:
    from valle_convert.model.description import Description

_TYPE_SUFFIX = re.compile(r"[-_.](f16|f32|bf16)$", re.IGNORECASE)


@dataclass(frozen=True)
class Origin:
    """What is quantized, and what it is held against.

    Attributes:
        source: the GGUF file.
        checkpoint, description: the checkpoint, where there is one.
        sha256: of the GGUF file, computed meanwhile.
        scratch: a folder that is removed at the end.
    """

    source: Source
    checkpoint: Checkpoint | None
    description: Description | None
    sha256: Future[str]
    scratch: Path

    @property
    def stem(self) -> str:
        """What the names of the files begin with."""
        return _TYPE_SUFFIX.sub("", Path(self.source.name).stem)


@contextmanager
def open_origin(
    source: Path,
    folder: Path,
    options: Options,
    checkpoint: Checkpoint | None,
    listener: Listener,
) -> Iterator[Origin]:
    """The source file with everything about it; a checkpoint is converted into the scratch."""
    from valle_convert.model.families import describe

    from_gguf = is_gguf(source)
    if not from_gguf:
        checkpoint = _own_checkpoint(source, checkpoint)
    description = None if checkpoint is None else describe(checkpoint)
    if not options.dry_run:
        _make_folder(folder)
    # In the dry run nothing of the output's place is touched; the scratch is small then, unless
    # a checkpoint has to be converted to be planned.
    place = None if options.dry_run else folder
    with (
        _scratch(place) as scratch,
        ThreadPoolExecutor(max_workers=1) as pool,
    ):
        if from_gguf or checkpoint is None:
            path, name = source, source.name
        else:
            path, name = scratch / "source.gguf", f"{source.stem}.gguf"
            _convert(checkpoint, path, listener)
        header = read_header(path)
        opened = Source(path, name, header)
        if checkpoint is not None and from_gguf:
            _check_same_checkpoint(opened, checkpoint)
        if options.measure and not is_converted(dict.fromkeys(header.key_names, True)):
            raise InputError(
                f"{source} is no converted VALL-E checkpoint, so its quality cannot be measured; "
                "give --no-measure to quantize it all the same."
            )
        digest: Future[str] = pool.submit(sha256_of, path)
        yield Origin(opened, checkpoint, description, digest, scratch)


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


def _convert(checkpoint: Checkpoint, target: Path, listener: Listener) -> None:
    from valle_convert.gguf_file.plan import plan_gguf
    from valle_convert.gguf_file.write import write_plan

    listener.talk(f"converting {checkpoint.path.name} first")
    write_plan(plan_gguf(checkpoint), target, progress=listener.progress)


def _check_same_checkpoint(source: Source, checkpoint: Checkpoint) -> None:
    said = source.header.value(SOURCE_SHA256_KEY)
    found = sha256_of(checkpoint.path)
    if said is not None and said != found:
        raise InputError(
            f"{source.name} was converted from another checkpoint than {checkpoint.path}: its "
            f"source has sha256 {said}, and this one {found}; give the right one, or leave out "
            "--checkpoint."
        )


def is_gguf(path: Path) -> bool:
    """Whether a file is a GGUF file, by its first four letters; else it is a checkpoint, or none.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise InputError(f"{path} cannot be read: {describe_os_error(error)}.") from error


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
