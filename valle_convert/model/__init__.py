"""A model without its weights (`spec`): sizes and switches, input tables, heads.

    checkpoint -> Family.describe -> Description (a model, and where every tensor goes)
    GGUF keys  -> Family.read_model -> the same model

The writer, the session, the reference and the verifier all read the model; none of them has a
second list of tables or heads.
"""
