"""Options that need or exclude each other, on a command line of real parameters."""

from __future__ import annotations

from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from valle_convert.cli.options import excludes, requires

app = typer.Typer()


@app.command()
def run(
    context: typer.Context,
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]")] = None,
    audio: Annotated[list[str] | None, typer.Argument(metavar="[AUDIO]...")] = None,
    task: Annotated[str, typer.Option("--task")] = "tts",
    source: Annotated[str | None, typer.Option("--source")] = None,
    margin: Annotated[float, typer.Option("--margin", "-m")] = 1.1,
    measure: Annotated[bool, typer.Option("--measure/--no-measure")] = True,
    quick: Annotated[bool, typer.Option("--quick")] = False,
) -> None:
    del text, audio, task, source, margin, measure, quick
    requires(context, {"source": "task=vc|ns", "margin": "text source", "quick": "measure=True"})
    excludes(context, {"text": "source", "task": "audio"})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", ""),
        ("hi", ""),
        ("--source a --task ns", ""),
        ("hi --margin 1.1", ""),
        ("--quick", ""),
        ("--source a", "--source: it has no effect without --task vc|ns"),
        ("--source a --task tts", "--source: it has no effect without --task vc|ns"),
        # A value is given even where it is the default.
        ("--margin 1.1", "--margin: it has no effect without TEXT or --source"),
        ("-m 2", "--margin: it has no effect without TEXT or --source"),
        ("--quick --no-measure", "--quick: it has no effect without --measure."),
        ("hi a.wav --task vc", "--task: it cannot be combined with AUDIO."),
        ("hi --source a --task vc", "TEXT: it cannot be combined with --source"),
    ],
)
def test_an_option_without_effect_is_refused(arguments: str, words: str) -> None:
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code == (2 if words else 0), result.output
    plain = " ".join(result.output.replace("│", " ").split())
    assert words in plain
