"""Text to phonemes: `sentences` splits, `languages` detects, `phonemes` makes IPA.

Everything works offline; a Python package brings espeak-ng as a library.
"""
