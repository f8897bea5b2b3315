"""Text and a voice in, speech out.

speaker    everything that speaks, on any `network.protocol.Network`
results    its options, and what it gives
"""

from __future__ import annotations
