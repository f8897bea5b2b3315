"""GGUF files: their plan, writing them, and reading them.

Description + tokenizer -> plan.plan_gguf -> GgufPlan -> write.write_plan -> file
file -> read.GgufFile -> keys, tensors, rows
"""
