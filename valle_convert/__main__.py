"""`python -m valle_convert` is `valle-convert`."""

from valle_convert.cli import main

main()
