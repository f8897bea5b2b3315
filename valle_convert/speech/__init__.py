"""Text and a voice in, speech out.

Every family has a `speech` of its own, which speaks on its networks.

common   what they share
results  options, and what comes out
"""

from __future__ import annotations
