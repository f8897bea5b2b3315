"""All attacks by name."""

from __future__ import annotations

from collections.abc import Mapping

from attacks.attack import Attack
from attacks.pickles import PICKLES
from attacks.tables import TABLES

ATTACKS: Mapping[str, Attack] = {**PICKLES, **TABLES}
