"""All plans of a run, and the importance matrix that some of them need.

Which matrix there will be decides what llama.cpp does with some tensors, and the matrix takes
minutes to make. So the plans are made with a stand-in that has the right entries, names and
sizes; the real one is made when everything else has been checked.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from valle_convert.checkpoint.read import sha256_of
from valle_convert.errors import InputError
from valle_convert.files import check_free_space
from valle_convert.quantize.imatrix_file import Entry, ImatrixFile, read_imatrix, write_imatrix
from valle_convert.quantize.options import AUTO, NONE, Listener, Options
from valle_convert.quantize.origin import Origin
from valle_convert.quantize.plan import FilePlan, ImatrixInput, Source, plan_file
from valle_convert.quantize.tool import Quantizer

if TYPE_CHECKING:
    from valle_convert.quantize.sequences import Sequences


def plan_all(
    quantizer: Quantizer, origin: Origin, options: Options, folder: Path, *, single: bool
) -> list[FilePlan]:
    """All plans, with a stand-in for an importance matrix that is still to be made."""
    source, settings = origin.source, options.settings
    plans = [plan_file(quantizer, source, kind, settings) for kind in options.types]
    needing = [plan.kind.name for plan in plans if plan.needs_imatrix]
    makes = options.imatrix == AUTO and origin.checkpoint is not None
    imatrix: ImatrixInput | None = None
    if options.imatrix not in (AUTO, NONE):
        path = Path(options.imatrix)
        imatrix = ImatrixInput(path, path.name, read_imatrix(path), sha256_of(path))
        _check_imatrix(imatrix, source)
    elif makes and (needing or options.data):
        imatrix = _stand_in(origin, options)
    elif needing:
        raise InputError(
            f"{', '.join(needing)} cannot be made without an importance matrix; "
            "give --imatrix FILE, or --checkpoint so that one can be made."
        )
    if imatrix is not None:
        everywhere = not makes or options.data is not None
        plans = [
            plan_file(quantizer, source, plan.kind, settings, imatrix)
            if plan.needs_imatrix or (everywhere and plan.kind.is_quantized)
            else plan
            for plan in plans
        ]
    fallbacks = [(plan.kind.name, one) for plan in plans for one in plan.fallbacks]
    if fallbacks and not options.allow_fallback:
        shown = "; ".join(f"{name}: {one}" for name, one in fallbacks[:5])
        raise InputError(
            f"{len(fallbacks)} tensors cannot have the type asked for, and --no-fallback was "
            f"given: {shown}{' ...' if len(fallbacks) > 5 else ''}. Choose types whose blocks the "
            "rows divide into (Q8_0, Q5_0, Q4_0: 32; K and IQ types: 256)."
        )
    if not options.dry_run:
        # Every file, and the unnamed one that the largest is copied from.
        sizes = [plan.n_bytes for plan in plans]
        name = plans[0].kind.name if single else f"the {len(plans)} files"
        check_free_space(folder / name, sum(sizes) + max(sizes))
    return plans


def _stand_in(origin: Origin, options: Options) -> ImatrixInput:
    """An importance matrix of ones: llama.cpp plans by its entries, not by its values."""
    sequences = _calibration(origin, options)
    entries = {
        name: Entry(np.ones(tensor.shape[-1], np.float32), 1)
        for name, tensor in origin.source.header.tensors.items()
        if len(tensor.shape) == 2
    }
    contents = ImatrixFile(entries, (sequences.description,), 1, 1)
    path = origin.scratch / "stand-in.gguf"
    write_imatrix(contents, path, force=True)
    return ImatrixInput(path, f"{origin.stem}-imatrix.gguf", contents, "0" * 64)


def _calibration(origin: Origin, options: Options) -> Sequences:
    from valle_convert.quantize.sequences import choose

    assert origin.description is not None  # noqa: S101 - asked for with a checkpoint only
    count = 0 if options.data else options.n_imatrix
    return choose(origin.description.model, options.data, count, seed=options.seed)


def _check_imatrix(imatrix: ImatrixInput, source: Source) -> None:
    """Wrong columns would stop llama-quantize halfway."""
    for name, entry in imatrix.contents.entries.items():
        tensor = source.header.tensors.get(name)
        if tensor is None or tensor.shape[-1] != len(entry.sums):
            found = "no such tensor" if tensor is None else f"{tensor.shape[-1]} columns"
            raise InputError(
                f"The importance matrix {imatrix.path} is of another model: it has {name} with "
                f"{len(entry.sums)} columns, and {source.name} has {found}."
            )


def with_real_imatrix(
    origin: Origin,
    plans: list[FilePlan],
    options: Options,
    folder: Path,
    single: bool,
    listener: Listener,
) -> list[FilePlan]:
    """Make the importance matrix that stands in so far, unless the user gave one."""
    stand_in = next((plan.imatrix for plan in plans if plan.imatrix), None)
    if stand_in is None or options.imatrix != AUTO:
        return plans
    from valle_convert.quantize.imatrix import made_of, make_imatrix

    assert origin.checkpoint is not None  # noqa: S101 - there would be no stand-in
    assert origin.description is not None  # noqa: S101
    sequences = _calibration(origin, options)
    path = (origin.scratch if single else folder) / stand_in.name
    if options.resume and path.exists() and made_of(path, origin.checkpoint, sequences):
        listener.talk(f"kept {path.name}")
    else:
        listener.talk(f"importance matrix of {sequences.description}")
        make_imatrix(
            origin.checkpoint,
            origin.description,
            sequences,
            path,
            resume=options.resume,
            force=options.force or options.resume,
            progress=listener.progress,
        )
    real = ImatrixInput(path, path.name, read_imatrix(path), sha256_of(path))
    return [replace(plan, imatrix=real) if plan.imatrix else plan for plan in plans]
