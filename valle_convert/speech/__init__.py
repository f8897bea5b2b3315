"""Text and a voice in, speech out.

speaker         everything that versions 5 and 6 speak, on any `network.protocol.Network`
vallex_speaker  VALL-E X, on any `network.vallex.ComposedNetwork`
common          what both share
results         options, and what comes out
"""

from __future__ import annotations
