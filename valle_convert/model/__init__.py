"""What a model is: its sizes and switches, its input tables, its heads.

    checkpoint -> Family.describe -> Description (a model, and where every tensor goes)
    GGUF keys  -> Family.read_model -> the same model

The writer, the session, the reference and the verifier all read the model; none of them keeps a
second list of tables or heads.
"""
