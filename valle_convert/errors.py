"""The errors that users see: one sentence each, and the exit code that goes with it.

The command line catches `ValleConvertError` only. Every other exception is a bug of
this project and keeps its traceback.

A message says what is wrong, where, what was expected against what was found, and
what to do about it.
"""

EXIT_OK = 0
EXIT_FAILED_CHECK = 1  # the work was done, and its verdict is no
EXIT_BAD_INPUT = 2  # something that the user gave cannot be used
EXIT_ENVIRONMENT = 3  # the machine lacks something: a program, a library, disk, a permission
EXIT_INTERRUPTED = 130  # Ctrl-C or SIGTERM; nothing is left behind


class ValleConvertError(Exception):
    """Base class of every error that is meant to be read by a user."""

    exit_code = EXIT_BAD_INPUT


class InputError(ValleConvertError):
    """A file, an option or a value given by the user cannot be used (exit code 2)."""


class UnsupportedModelError(InputError):
    """The checkpoint is readable, but is of a kind that is refused by name (exit code 2)."""


class EnvironmentFault(ValleConvertError):
    """The machine cannot do it: missing library, no space, no permission (exit code 3)."""

    exit_code = EXIT_ENVIRONMENT
