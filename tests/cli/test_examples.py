"""The examples that `--help` ends with."""

import shlex

import pytest
import typer
from support import Cli

from valle_convert.cli.app import app
from valle_convert.cli.examples import EXAMPLES

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_ends_with_examples_that_parse(name: str, cli: Cli) -> None:
    shown = cli(name, "--help").out
    lines = [line.strip() for line in EXAMPLES[name].splitlines() if line.strip()]
    assert lines
    assert shown.rstrip().endswith("\n".join(f"    {line}" for line in lines))
    for line in lines:
        words = shlex.split(line.split(" | ")[0].split(" < ")[0])[1:]
        command = COMMANDS[name]
        arguments = words[1:] if words[0] == name else words
        assert words[0] == name or name == "convert"
        command.make_context(name, arguments)  # a usage error where it does not parse
