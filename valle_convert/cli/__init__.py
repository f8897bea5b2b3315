"""The command line: each command reads its arguments, calls the library, and prints the result.

    app        the program: its table of commands, errors, exit codes
    console    the one place that prints: results to stdout, logs and progress to stderr
    streams    standard streams that never raise
    interrupt  Ctrl-C and SIGTERM
    options    how options are declared, and those that several commands share
    rules      which options need or exclude each other
    speak_options, speak_report   options of `speak` and `serve`; progress and result of `speak`
    examples   examples at the end of each --help
    convert, inspect, tokenize, verify, doctor ...   a command each, some with a small relative

Heavy packages are imported inside the commands, so that `--help` is instant.
"""


def main() -> None:
    """Run the program and exit with a documented code."""
    from valle_convert.cli import interrupt

    interrupt.before_work()
    from valle_convert.cli.app import run

    run()
