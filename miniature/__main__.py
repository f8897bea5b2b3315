"""`valle-convert` with the miniature's codec: `python -m miniature speak ...`."""

import miniature.world  # noqa: F401 - registers the codec
from valle_convert.cli import main

main()
