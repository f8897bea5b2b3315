"""Text and a voice in, speech out.

speaker     sentences, voices and decoding for any model; each family has a subclass
recordings  recordings to codes and back, for speakers
phonemes    a speaker for models that read espeak-ng's phonemes
results     options and results
settings    options by flat names, for `--set`
"""
