"""What `--help` promises, and the rules of options, hold for every command."""

import shlex

import pytest
from support import Cli

from valle_convert.cli.app import every_command
from valle_convert.cli.examples import EXAMPLES
from valle_convert.cli.rules import EXCLUDES, NEEDS

COMMANDS = every_command()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_examples_that_parse(name: str, cli: Cli) -> None:
    shown = cli(name, "--help").out
    assert "\\b" not in shown
    commands = set()
    for line in EXAMPLES[name].splitlines():
        assert f"{line}\n" in shown
        program, *words = shlex.split(line.split(" | ")[0].split(" < ")[0], comments=True)
        command = words.pop(0) if words[0] in COMMANDS else "convert"
        assert program == "valle-convert"
        commands.add(command)
        COMMANDS[command].make_context(command, words)  # a usage error where it does not parse
    assert name in commands


def test_the_list_of_commands_has_whole_sentences(cli: Cli) -> None:
    shown = cli("--help").out
    for name, command in COMMANDS.items():
        assert f"{name} " in shown
        assert f"{command.help.splitlines()[0].split('. ')[0].rstrip('.')}.\n" in shown


def test_every_rule_is_of_parameters_that_there_are() -> None:
    for command, rules in (*NEEDS.items(), *EXCLUDES.items()):
        known = {one.name for one in COMMANDS[command].params}
        named = {word.partition("=")[0] for text in rules.values() for word in text.split()}
        assert {*rules, *named} <= known, command
