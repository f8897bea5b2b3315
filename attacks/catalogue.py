"""All attacks by name, and what they are made of."""

from __future__ import annotations

from collections.abc import Mapping

from attacks import pickles, tables
from attacks.attack import Attack

ATTACKS: Mapping[str, Attack] = {**pickles.PICKLES, **tables.TABLES}
BASES: Mapping[str, Attack] = {**pickles.BASES, **tables.BASES}
