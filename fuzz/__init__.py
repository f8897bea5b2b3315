"""Seeded, structure-aware mutation of every kind of file that is read from strangers.

`mutate` damages bytes, fields, JSON trees and pickles; `formats` takes files apart into fields
and makes small valid ones; `targets` says for each kind of input what is made, who reads it and
the reader it is compared with; `runner` runs them in processes with limits and keeps findings.

    python -m fuzz --minutes 5            # all targets; `make fuzz MINUTES=5`
    python -m fuzz --again TARGET INDEX   # one input once more, with its traceback
"""
