"""The command line: it reads arguments, calls one library function, and prints the report.

    app       the program: what is a command, how errors end it
    console   the one place that prints: data to stdout, talk and progress to stderr
    options   options that several commands share
    convert, inspect, tokenize, verify, doctor ...   one command each

Heavy packages are imported inside the commands, so that `--help` is instant.
"""

from __future__ import annotations

from valle_convert.cli.app import main

__all__ = ["main"]
