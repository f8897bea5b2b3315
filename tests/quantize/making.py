"""One file made by llama-quantize, without the rest of a run."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from valle_convert.families.bundle import Bundle
from valle_convert.families.family import Unit
from valle_convert.families.v5 import FAMILY
from valle_convert.quantize.make import make_bundle
from valle_convert.quantize.manifest import ManifestFile
from valle_convert.quantize.options import RunLog
from valle_convert.quantize.plan import BundlePlan, FilePlan
from valle_convert.quantize.source import Scratch, Source, SourceBundle
from valle_convert.quantize.tool import Quantizer


def bundle_of(source: Source) -> SourceBundle:
    unit = Unit("model")
    return SourceBundle(source.name, Bundle(FAMILY, {"model": source.header}), {unit: source})


def make_one(
    quantizer: Quantizer, plan: FilePlan, target: Path, log: RunLog | None = None
) -> ManifestFile:
    whole = BundlePlan(plan.kind, {Unit("model"): plan}, {"model": target}, plan.n_bytes)
    with closing(Scratch(target.parent)) as scratch:
        (entry,) = make_bundle(
            quantizer, whole, bundle_of(plan.source), scratch=scratch, log=log
        ).entries
    return entry
