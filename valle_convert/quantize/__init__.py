"""Quantizing: files of several types at once, measured, judged, and documented.

types         what may be asked for: types of files and of tensors
tool, worker  who does it: llama-quantize, or the same routine in the library
source        what is quantized, and the checkpoint that it came from
imatrix, matrices  how much each column of a matrix counts, from the PyTorch reference
plan, make    files: predicted to the byte, then made
check         whether a file is what its source is
manifest, folder  what lies in a folder, whether it still does, and what is removed of it
run           `quantize`: all of that
examples      what importance and quality are measured on
quality, audience, measure  how good and fast a file is, and what it says
limits        what may be lost
measurements  what was measured of a file, and the verdict, beside it
evaluate      `evaluate`: all of that
scan          `scan`: how much each matrix loses in each type, and which to choose
report, html, forms  the result for programs and for people
advice, card, publish  which file to take; a folder for the hub
"""

from __future__ import annotations
