"""What is quantized: a converted file, or a checkpoint, which is converted first.

In: a path, and the checkpoint that quality is measured against. Out: `Source`, with the GGUF
file that llama-quantize reads. Converting takes time and disk, and llama.cpp plans by a file's
header alone. So a checkpoint's source is at first that header, followed by nothing (a sparse
file); everything is checked with it, and `Source.complete` fills in the weights when all is well.

What is needed only during the run lies in files without a name (`Scratch`), which the system
removes with the process, however that ends.
"""

from __future__ import annotations

import re
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from valle_convert.checkpoint import Checkpoint, read_checkpoint
from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.files import describe_os_error, sha256_of, valid_utf8
from valle_convert.gguf_file.header import ALIGNMENT
from valle_convert.gguf_file.keys import (
    SOURCE_FORMAT_KEY,
    SOURCE_LORA_KEY,
    SOURCE_SHA256_KEY,
    is_converted,
)
from valle_convert.gguf_file.loadable import check_loadable
from valle_convert.gguf_file.old import as_repaired, is_old, why_wrong
from valle_convert.gguf_file.plan import GgufPlan, plan_gguf
from valle_convert.gguf_file.read import GgufFile, is_gguf
from valle_convert.gguf_file.write import header_of, write_plan_to
from valle_convert.model.description import Description
from valle_convert.progress import Progress, silent

if TYPE_CHECKING:
    from valle_convert.model.spec import Model

_TYPE_SUFFIX = re.compile(r"[-_.](f16|f32|bf16)$", re.IGNORECASE)


class Scratch:
    """Files without a name, for the time of a run.

    Args:
        folder: on whose disk they lie; they show nowhere. It need not be there yet.
    """

    def __init__(self, folder: Path) -> None:
        while not folder.exists():
            folder = folder.parent
        self._folder = folder
        self._files = ExitStack()

    def new(self) -> tuple[BinaryIO, Path]:
        """An empty file, and a path that this process and its children can open it by.

        Raises:
            EnvironmentFault: the disk takes no file.
        """
        try:
            file = self._files.enter_context(
                tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - the stack closes it
            )
        except OSError as error:
            raise EnvironmentFault(
                f"No file can be made in {self._folder}: {describe_os_error(error)}; "
                "choose another folder."
            ) from error
        return file, Path(f"/dev/fd/{file.fileno()}")

    def close(self) -> None:
        """Give the files back."""
        self._files.close()


@dataclass(frozen=True)
class Reference:
    """A checkpoint that files are held against, and what its family says of it."""

    checkpoint: Checkpoint
    description: Description


@dataclass(eq=False)
class Source:
    """The file that is quantized.

    Attributes:
        path: where it is.
        name: its name for metadata, reports and the files made of it; what is no UTF-8 in it is
            U+FFFD, since manifests and GGUF strings hold nothing else.
        header: its header.
        reference: the checkpoint, where there is one.
        conversion: the plan of a checkpoint's conversion; None for a file that was there.
        original: the user's file, where `path` is a copy of it in another form.
        is_empty: whether it is a header with nothing behind it, for a dry run.
    """

    path: Path
    name: str
    header: GgufFile
    reference: Reference | None = None
    conversion: GgufPlan | None = None
    original: Path | None = None
    is_empty: bool = False
    _file: BinaryIO | None = None
    _digest: Future[str] | None = None

    def complete(self, progress: Progress = silent) -> None:
        """Convert the checkpoint, where it is one, and start to compute the digest.

        Raises:
            InputError: a weight is not finite.
            EnvironmentFault: the disk is full.
        """
        if self._digest is not None:
            return
        if self.conversion is not None and self._file is not None:
            try:
                write_plan_to(self.conversion, self._file, progress=progress)
                self._file.flush()
            except OSError as error:
                raise EnvironmentFault(
                    f"The conversion of {self.name} cannot be written: "
                    f"{describe_os_error(error)}; free some space or write elsewhere."
                ) from error
        pool = ThreadPoolExecutor(max_workers=1)
        self._digest = pool.submit(sha256_of, self.given)
        pool.shutdown(wait=False)

    @property
    def given(self) -> Path:
        """The file that the user named, or the conversion of the checkpoint."""
        return self.path if self.original is None else self.original

    @property
    def sha256(self) -> str:
        """Of the file, which has to be complete."""
        return sha256_of(self.given) if self._digest is None else self._digest.result()

    @property
    def is_complete(self) -> bool:
        """Whether the weights are in the file; until then it has a header only."""
        return not self.is_empty and (self.conversion is None or self._digest is not None)

    @property
    def stem(self) -> str:
        """What the names of the quantized files begin with."""
        return _TYPE_SUFFIX.sub("", Path(self.name).stem)

    @property
    def n_bytes(self) -> int:
        """The size of the file."""
        return self.given.stat().st_size


def open_source(
    path: Path, checkpoint: Checkpoint | None, scratch: Scratch, *, measure: bool
) -> Source:
    """The source with everything about it.

    Args:
        path: a converted file or a checkpoint.
        checkpoint: what quality is measured against; a checkpoint as `path` is its own.
        scratch: takes the conversion of a checkpoint.
        measure: whether quality will be measured, which takes a model of ours.

    Raises:
        InputError: the two do not belong together, or the file is of no use.
        EnvironmentFault: the disk takes no file.
    """
    from valle_convert.model.families import describe

    if not is_gguf(path):
        checkpoint = _own_checkpoint(path, checkpoint)
        reference = Reference(checkpoint, describe(checkpoint))
        conversion = plan_gguf(checkpoint)
        file, file_path = scratch.new()
        header = header_of(conversion)
        file.write(header)
        file.truncate(len(header) + conversion.data_bytes)  # flushes
        name = f"{valid_utf8(checkpoint.title)}.gguf"
        return Source(file_path, name, GgufFile(file_path), reference, conversion, _file=file)
    opened = GgufFile(path)
    if is_old(opened):
        raise InputError(why_wrong(path))
    if measure and not is_converted(opened.keys):
        raise InputError(
            f"{path} is no converted VALL-E checkpoint, so its quality cannot be measured; "
            "give --no-measure to quantize it all the same."
        )
    if is_converted(opened.keys):
        check_loadable(opened)
    if not opened.tensors:
        raise InputError(f"{path} has no tensors, so there is nothing to quantize in it.")
    source = Source(path, valid_utf8(path.name), opened)
    if checkpoint is not None:
        if opened.keys.get(SOURCE_FORMAT_KEY) in (None, checkpoint.origin.get("format")):
            _check_same_checkpoint(path.name, opened, checkpoint)
        else:  # made of an export, which does not know its checkpoint: the weights will tell
            checkpoint = as_repaired(checkpoint, opened)
        source.reference = Reference(checkpoint, describe(checkpoint))
    if opened.alignment != ALIGNMENT:
        file, source.path = scratch.new()
        try:
            opened.write_aligned(file)
            file.flush()
        except OSError as error:
            raise EnvironmentFault(
                f"{path.name} cannot be copied to be aligned to {ALIGNMENT} bytes: "
                f"{describe_os_error(error)}; free some space or write elsewhere."
            ) from error
        source.original, source.header = path, GgufFile(source.path)
    return source


def model_of(source: Source) -> Model:
    """What the source describes.

    Raises:
        InputError: it is no converted checkpoint, or its keys are not consistent.
    """
    if source.reference is not None:
        return source.reference.description.model
    from valle_convert.network.converted import open_model

    return open_model(GgufFile(source.path))


def _own_checkpoint(source: Path, given: Checkpoint | None) -> Checkpoint:
    """The checkpoint that the source itself is."""
    if given is None:
        return read_checkpoint(source)
    if source != given.given and not given.path.samefile(source):
        raise InputError(
            f"{source} is a checkpoint, which its files are held against; leave out --checkpoint "
            f"{given.given or given.path}."
        )
    return given


def _check_same_checkpoint(name: str, header: GgufFile, checkpoint: Checkpoint) -> None:
    said = header.keys.get(SOURCE_SHA256_KEY)
    found = checkpoint.sha256()
    if said is not None and said != found:
        raise InputError(
            f"{name} was converted from another checkpoint than {checkpoint.path}: its "
            f"source has sha256 {said}, and this one {found}; give the right one, or leave out "
            "--checkpoint."
        )
    merged = header.keys.get(SOURCE_LORA_KEY)
    if said is None or _weights_of(merged) == _weights_of(checkpoint.lora):
        return
    if merged is None:
        raise InputError(
            f"{name} was converted without a LoRA, and the weights it would be measured against "
            f"have one merged: {checkpoint.lora}; leave out --lora."
        )
    raise InputError(
        f"{name} was converted with a LoRA merged: {merged}. The weights it would be measured "
        f"against have {checkpoint.lora or 'none'}; give the same with --lora and --lora-alpha, "
        "or leave out --checkpoint."
    )


def _weights_of(lora: object) -> str:
    """What a conversion says of LoRAs, but for their files' names: `(96 weights, alpha 16)`."""
    return ", ".join(re.findall(r"\((\d+ weights, [^()]*)\)", str(lora or "")))
