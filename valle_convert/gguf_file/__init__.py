"""GGUF files: what will be in one (plan), making it (write), and what is in one (read).

Description + tokenizer -> plan.plan_gguf -> GgufPlan -> write.write_plan -> file
file -> read.GgufFile -> keys, tensors, rows
"""

from __future__ import annotations
