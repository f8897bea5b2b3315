"""GGUF files: their plan, writing them, and reading them.

    Contents and FileKeys -> plan.lay_out -> PlannedFile -> write.write_plan_to -> file
    file -> read.GgufFile -> keys, tensors, rows

`families/bundle.py` plans, writes and opens all files of a model.
"""
