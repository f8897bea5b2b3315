"""Quantizing: files of several types at once, measured, judged, and documented.

types, recipes    what may be asked for
tool, worker      who does it: llama-quantize, or the same routine in the library
plan, make        one file: predicted to the byte, then made
imatrix           how much each column of a matrix counts, from the PyTorch reference
sequences         the utterances that this and the quality are measured on
measure, limits   how good and fast a file is, and whether that is enough
manifest          what lies in a folder, and whether it still does
compare           two files, key by key and tensor by tensor
report, html      the result for programs and for people
run               all of it: `quantize(source, out, options) -> QuantizeReport`
"""

from __future__ import annotations
