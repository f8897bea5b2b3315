"""Quantizing: files of several types at once, measured, judged, and published.

types         types of files and of tensors
tool, worker  llama-quantize, or the same routine in the library
source        the files to quantize, and the checkpoint that they came from
imatrix, matrices  importance matrices, from the PyTorch reference
plan, make    files: predicted to the byte, made, and compared with their source
manifest, folder  what lies in a folder: listed, checked, kept
run           `quantize`: all of that
examples      utterances to measure on
quality       one network compared with the reference: predictions, greedy codes, speed
listening     the same for what it says
measure       both and `verify`, for a file; makes the reference and the F16 baseline
measurements  what was measured of a file, and the verdict, as JSON beside it
limits        the loss that a user allows
evaluate      `evaluate`: all of that
scan          `scan`: the sensitivity of each matrix, and a type for each
report, tables, plots, forms, render  the result for programs and for people
merge, publish  folders of files: joined, and sent to the hub with a model card
"""
