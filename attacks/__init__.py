"""Generators of small hostile files.

None does harm: the code in them only makes a file, the canary. Each must be rejected before that
(tests/attacks). To make one:

    python -m attacks NAME FOLDER
"""
