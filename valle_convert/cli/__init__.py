"""The command line: it reads arguments, calls one library function, and prints the report.

    app        the program: what is a command, how errors end it
    console    the one place that prints: data to stdout, talk and progress to stderr
    streams    standard streams that cost no verdict
    interrupt  Ctrl-C and SIGTERM
    options    options that several commands share
    convert, inspect, tokenize, verify, doctor ...   one command each

Heavy packages are imported inside the commands, so that `--help` is instant.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the program and exit with a documented code."""
    from valle_convert.cli import interrupt

    interrupt.before_work()
    from valle_convert.cli.app import run

    run()
