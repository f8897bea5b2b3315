"""Examples at the end of each command's `--help`."""

from __future__ import annotations

EXAMPLES = {
    "convert": """
        valle-convert model.sft model.gguf
        valle-convert hf:ecker/vall-e/ar+nar-len-llama-8 model.gguf --outtype f16
        valle-convert training/ model.gguf --verify full
    """,
    "inspect": """
        valle-convert inspect model.sft
        valle-convert inspect small/
    """,
    "export": """
        valle-convert export model.gguf exported/
    """,
    "tokenize": """
        valle-convert tokenize model.gguf "həlˈoʊ wˈɜːld"
    """,
    "verify": """
        valle-convert verify model.sft model.gguf
        valle-convert verify model.gguf
    """,
    "repair": """
        valle-convert repair old.gguf model.gguf
    """,
    "lora": """
        valle-convert lora model.gguf lora.sft adapter.gguf
    """,
    "quantize": """
        valle-convert quantize model.gguf small/ --types Q8_0,Q4_K_M
        valle-convert quantize model.gguf small.gguf Q4_K_M
        valle-convert quantize model.sft mixed.gguf Q4_K --tensor-types model.txt
    """,
    "evaluate": """
        valle-convert evaluate small/ --checkpoint model.sft --max-kl 0.01 --report report.html
        valle-convert evaluate model.gguf small.gguf --data utterances/ --listen --codec codec.gguf
    """,
    "scan": """
        valle-convert scan model.sft model.txt --target-bits 4.5
    """,
    "imatrix": """
        valle-convert imatrix model.sft -o model-imatrix.gguf --data utterances/
    """,
    "compare": """
        valle-convert compare model.gguf model-Q4_K_M.gguf
    """,
    "merge": """
        valle-convert merge jobs/Q8_0 jobs/Q4_K_M small/ --max-kl 0.01 --report report.html
    """,
    "check-manifest": """
        valle-convert check-manifest small/ --require-passed
    """,
    "publish": """
        valle-convert publish small/
        valle-convert publish small/ me/VALL-E-GGUF
    """,
    "utterances": """
        valle-convert utterances --list recordings.tsv utterances/ --model model.gguf
    """,
    "speak": """
        valle-convert speak model.gguf "Hello." --voice prompt.wav --codec codec.gguf -o hello.wav
        valle-convert speak model.gguf - -o - < text.txt | ffplay -nodisp -
    """,
    "serve": """
        valle-convert serve model-Q4_K_M.gguf --codec codec.gguf --voices voices/
    """,
    "voice": """
        valle-convert voice prompt.wav voices/anna.npz --model model.gguf --codec codec.gguf
    """,
    "transcribe": """
        valle-convert transcribe model.gguf speech.wav --codec codec.gguf
    """,
    "codec": """
        valle-convert codec facebook/encodec_24khz codec.gguf
    """,
    "doctor": """
        valle-convert doctor
    """,
}


def epilog_of(command: str) -> str:
    """The examples of a command, as `--help` shows them."""
    lines = EXAMPLES[command].split("\n")
    return "\b\nExamples:\n" + "\n".join(f"  {line.strip()}" for line in lines if line.strip())
