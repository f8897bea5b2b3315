"""Small generators of hostile files: what each of them tries is said beside it.

None of them does any harm: what would be run, or imported, makes a file, the canary. Every one has
to be refused before that (tests/attacks); docs/security.md lists them. To have one in hand:

    python -m attacks NAME FOLDER
"""
