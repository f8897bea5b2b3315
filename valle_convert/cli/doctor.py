"""`valle-convert doctor`: the state of this machine, and what each command lacks."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from valle_convert.cli import console
from valle_convert.cli.options import JSON
from valle_convert.errors import EXIT_ENVIRONMENT, EXIT_OK
from valle_convert.wording import plural

if TYPE_CHECKING:
    from valle_convert.doctor import DoctorReport
    from valle_convert.llama.tuning import Choice


def doctor(json_: bool = JSON) -> int:
    """Show the state of this machine.

    Shows versions, llama.cpp, the CPU, and what each command lacks. Exit code 3 if one lacks
    something.
    """
    from valle_convert.doctor import examine

    report = examine()
    if json_:
        console.data_json(asdict(report))
    else:
        _show(report)
    return EXIT_OK if report.ok else EXIT_ENVIRONMENT


def _show(report: DoctorReport) -> None:
    console.data_table(
        [
            ("valle-convert", report.version),
            ("Python", report.python),
            ("system", report.system),
            ("CPU", f"{report.cpu}, {plural(report.cores, 'usable core')}"),
            ("CPU features", " ".join(report.cpu_features)),
        ]
    )
    console.data("\npackages")
    console.data_table(
        [(p.name, p.installed or "missing", p.extra, p.problem or "") for p in report.packages],
        header=("package", "installed", "extra", "problem"),
    )
    llama = report.llama
    console.data("\nllama.cpp")
    probe = "not run"
    if llama.probe is not None:
        remembered = "passed before, with the same library on the same CPU"
        probe = remembered if llama.probe.remembered else f"passed in {llama.probe.seconds:.1f} s"
    rows = [
        ("library", str(llama.path or "not found")),
        ("llama-cpp-python", llama.binding_version or "missing"),
        ("built with", llama.system_info or "unknown"),
        ("devices", "; ".join(llama.devices) or "unknown"),
        ("self-test", probe),
    ]
    rows += [
        (program.name, str(program.found.path) if program.found else str(program.problem))
        for program in report.programs
    ]
    console.data_table(rows)
    if llama.problem:
        console.data(f"install for this CPU: {report.install}")
        console.data(llama.problem)
    if report.tuned:
        from valle_convert.llama.tuning import SENTENCE

        console.data(f"\nfastest settings (a pass has {SENTENCE} positions, a step follows them)")
        found = [
            (
                f"{one.file.n_layer} x {one.file.n_embd}",
                f"{one.file.n_weights / 1e6:.0f} M, mostly {one.file.type}",
                *_choice(one.passes),
                *_choice(one.steps),
                str(one.n_parallel),
            )
            for one in report.tuned
        ]
        header = ("layers", "weights", "passes", "ms (exact)", "steps", "ms (exact)", "parallel")
        console.data_table(found, header=header)
    console.data("\ncommands")
    console.data_table([(c.name, "; ".join(c.missing) or "ready") for c in report.commands])


def _choice(found: Choice) -> tuple[str, str]:
    """Settings in words, and milliseconds with them and with the exact ones."""
    from valle_convert.llama.tuning import settings_words

    seconds = f"{found.seconds * 1e3:.3g} ({found.exact_seconds * 1e3:.3g})"
    return settings_words(found.settings), seconds
