"""Quantizing: files of several types at once, measured, judged, and documented.

types        what may be asked for: types of files and of tensors
tool, worker who does it: llama-quantize, or the same routine in the library
source       what is quantized, and the checkpoint that it came from
plan, make   files: predicted to the byte, then made
manifest     what lies in a folder, and whether it still does
imatrix      how much each column of a matrix counts, from the PyTorch reference
utterances   what this and the quality are measured on
quality      how good and fast a file is; limits say whether that is enough
report, html the result for programs and for people; forms writes it
options      what the user wants of all of it
folder       what a manifest lists before a run, and what is removed after it
run          all of it: `quantize(path, out, options) -> QuantizeReport`
"""

from __future__ import annotations
