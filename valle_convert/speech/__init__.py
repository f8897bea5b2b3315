"""Text and a voice in, speech out.

speaker  reading, voices, redraws and pieces, whatever the model; each family has a subclass
results  options, and what comes out
"""
