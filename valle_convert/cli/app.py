"""The program: its commands, the default command, and its exit codes.

`valle-convert CHECKPOINT OUT.gguf` is `valle-convert convert CHECKPOINT OUT.gguf`: a first
argument that is not a command is a checkpoint.

Exit codes: 0 done; 1 a check failed; 2 bad input or usage; 3 the machine cannot do it;
130 interrupted.
"""

import difflib
import errno
import faulthandler
import math
import os
import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import TyperPath

from valle_convert import __version__
from valle_convert.cli import console, interrupt, rules, streams
from valle_convert.cli.examples import EXAMPLES
from valle_convert.cli.options import expanded
from valle_convert.errors import (
    EXIT_BAD_INPUT,
    EXIT_ENVIRONMENT,
    EXIT_INTERRUPTED,
    EXIT_OK,
    ValleConvertError,
)
from valle_convert.files import os_fault
from valle_convert.threads import limit_openmp_spinning

_DEFAULT_COMMAND = "convert"
# What typer raises for a wrong command line. Some versions bundle click, others import it; this
# name exists in both.
_UsageError: Any = typer.BadParameter.__bases__[0]


class _Command(TyperCommand):
    """A command that rejects values no command can use, and shows its options by panel."""

    def __init__(self, *args: Any, **others: Any) -> None:  # noqa: ANN401 - click's or typer's
        super().__init__(*args, **others)
        for param in self.params:
            if isinstance(param.type, TyperPath):
                param.type.readable = False  # the reader reports it, with exit code 3

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - click's or typer's
        panels: dict[str, list[Any]] = {}
        for param in self.get_params(ctx):
            kind = "Options" if param.param_type_name == "option" else "Arguments"
            panel = getattr(param, "rich_help_panel", None) or kind
            panels.setdefault(panel, []).append(param.get_help_record(ctx))
        for panel, records in panels.items():
            if shown := [record for record in records if record is not None]:
                with formatter.section(panel):
                    formatter.write_dl(shown)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - click's or typer's
        for param in self.params:
            given = ctx.params.get(param.name)
            for value in given if isinstance(given, list | tuple) else [given]:
                problem = _problem(param, value)
                if problem:
                    # Options by their name, arguments by their metavar.
                    name = param.opts[-1] if param.param_type_name == "option" else param.metavar
                    raise typer.BadParameter(problem, param_hint=name)
        rules.check(ctx)
        return super().invoke(ctx)


def _problem(param: Any, value: object) -> str:  # noqa: ANN401 - click's or typer's
    """Why a value is invalid; usually empty."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not finite."
    if isinstance(param.type, TyperPath):
        if value == "":
            return "the name is empty."
        if value == "-" and not param.type.allow_dash:
            return "- is not a file name here."
    return ""


_COMMANDS = """
    convert inspect export@convert tokenize verify repair@convert lora quantize
    check-manifest@quantize evaluate scan imatrix@scan compare@inspect merge@evaluate publish
    utterances speak serve voice@utterances transcribe codec doctor
"""
#: The module of each command, in the order of `--help`.
COMMANDS = {
    name: module or name for name, _, module in (one.partition("@") for one in _COMMANDS.split())
}
_CONTEXT = {"help_option_names": ["-h", "--help"]}


class _Commands(TyperGroup):
    """The commands, each imported when it is asked for; `convert` is the default."""

    def list_commands(self, _: Any) -> list[str]:  # noqa: ANN401 - click's or typer's
        return [*COMMANDS]

    def get_command(self, _: Any, name: str) -> Any:  # noqa: ANN401 - click's or typer's
        if name not in COMMANDS:
            return None
        if name not in self.commands:
            module = import_module(f"valle_convert.cli.{COMMANDS[name]}")
            body = getattr(module, name.replace("-", "_"))
            alone = typer.Typer(add_completion=False, rich_markup_mode=None)
            epilog = f"\b\nExamples:\n{EXAMPLES[name]}"
            command = alone.command(name, cls=_Command, epilog=epilog, context_settings=_CONTEXT)
            command(expanded(body))
            self.commands[name] = typer.main.get_command(alone)
        return self.commands[name]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - click's or typer's
        # Options of the program itself, such as --help.
        if args and args[0] not in COMMANDS.keys() | {"--help", "-h", "--version"}:
            _refuse_misspelt(args[0], [*COMMANDS])
            args = [_DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)


def _refuse_misspelt(word: str, commands: list[str]) -> None:
    """Reject a misspelt command instead of reading it as a checkpoint."""
    if word.startswith("-") or any(c in word for c in "./:\\") or os.path.lexists(word):
        return
    near = difflib.get_close_matches(word.lower(), commands, n=1, cutoff=0.6)
    advice = f"Did you mean {near[0]}?" if near else "valle-convert --help lists the commands."
    raise _UsageError(f"No command or checkpoint named {word!r}. {advice}")


app = typer.Typer(
    name="valle-convert",
    cls=_Commands,
    help=(
        "Convert VALL-E checkpoints to GGUF for stock llama.cpp, check the result, quantize it, "
        "and speak with it.\n\nWithout a command: valle-convert CHECKPOINT OUT.gguf"
    ),
    epilog=(
        "Exit codes: 0 done, 1 a check failed, 2 bad input or usage, 3 the machine cannot do it "
        "(a missing library, no space, no permission), 130 interrupted."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=_CONTEXT,
    rich_markup_mode=None,
)


def _version(show: bool) -> None:
    if show:
        console.data(f"valle-convert {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version."
    ),
) -> None:
    """Options of the program itself."""


def every_command() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return {name: group.get_command(None, name) for name in COMMANDS}


def run() -> None:
    streams.install_safe_streams()
    limit_openmp_spinning()
    interrupt.during_work()
    faulthandler.enable(2)  # a truncated mapped file ends the process by a signal
    try:
        # A command returns its code, and so does `typer.Exit`, Ctrl-C included.
        returned = app(standalone_mode=False, prog_name="valle-convert")
        code = returned if isinstance(returned, int) else EXIT_OK
    except ValleConvertError as error:
        console.error(str(error))
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except OSError as error:
        # Any read may hit a broken disk, and any stat a name that is too long or a folder without
        # permission; not every place can handle that itself.
        if error.filename is None and error.errno not in {errno.EIO, errno.ESTALE, errno.ENXIO}:
            raise
        fault = os_fault(f"{error.filename or 'A file'} cannot be read or written", error)
        console.error(str(fault))
        code = fault.exit_code
    except _UsageError as error:
        error.show()
        code = EXIT_BAD_INPUT
    except Exception:
        # An interrupted import may end in any error.
        if not interrupt.requested():
            raise
        code = EXIT_INTERRUPTED
    if interrupt.waits():
        code = EXIT_INTERRUPTED
    interrupt.after_work(code)
    if code == EXIT_INTERRUPTED:
        console.log(interrupt.message())
    sys.stdout.flush()
    lost = streams.lost_output()
    if lost is not None:
        console.error(f"Standard output is incomplete: {lost}.")
        code = code or EXIT_ENVIRONMENT
    sys.exit(code)
