"""Examples at the end of each command's `--help`."""

from inspect import cleandoc

_EXAMPLES = {
    "convert": """
        valle-convert ckpt.sft model.gguf  # the checkpoint's number format
        valle-convert hf:ecker/vall-e/ar+nar-len-llama-8 model.gguf --outtype f16
        valle-convert training/ model.gguf --verify full  # the latest state of a training
        valle-convert ckpt.sft --dry-run  # what would be written
    """,
    "inspect": """
        valle-convert inspect ckpt.sft  # before converting
        valle-convert inspect small/  # types, sizes, verdicts
        valle-convert inspect hf:ecker/vall-e/ar+nar-len-llama-8  # reads the header only
    """,
    "export": """
        valle-convert export model.gguf exported/  # writes exported/fp32.sft
    """,
    "tokenize": """
        valle-convert tokenize model.gguf "həlˈoʊ wˈɜːld"
        valle-convert tokenize model.gguf --file phonemes.txt  # compares every line
    """,
    "verify": """
        valle-convert verify ckpt.sft model.gguf --report verified.md
        valle-convert verify ckpt.sft model.gguf --level logits --trace  # where does it differ?
        valle-convert verify model.gguf  # is the download complete?
    """,
    "repair": """
        valle-convert repair old.gguf model.gguf --biases ckpt.sft
    """,
    "lora": """
        valle-convert lora model.gguf voice.sft voice.gguf
        valle-convert speak model.gguf "Hi." --lora voice.gguf@0.8 -o hi.wav
    """,
    "quantize": """
        valle-convert quantize model.gguf small/ --types Q8_0,Q4_K_M
        valle-convert quantize ckpt.sft small.gguf Q4_K_M  # converts first
        valle-convert quantize ckpt.sft mixed.gguf Q4_K --tensor-types chosen.txt
    """,
    "check-manifest": """
        valle-convert check-manifest small/ --require-passed
    """,
    "evaluate": """
        valle-convert evaluate small/ --checkpoint ckpt.sft --max-kl 0.01 --report report.html
        valle-convert evaluate model.gguf small.gguf --listen --data held-out/ --codec codec.gguf
    """,
    "scan": """
        valle-convert scan ckpt.sft chosen.txt --target-bits 4.5
    """,
    "imatrix": """
        valle-convert imatrix ckpt.sft -o imatrix.gguf --data utterances/
    """,
    "compare": """
        valle-convert compare model.gguf model-Q4_K_M.gguf
    """,
    "merge": """
        valle-convert merge jobs/Q8_0 jobs/Q4_K_M small/ --max-kl 0.01 --report report.html
    """,
    "publish": """
        valle-convert publish small/  # writes small/README.md
        valle-convert publish small/ me/VALL-E-GGUF --license mit  # and uploads the folder
    """,
    "utterances": """
        valle-convert utterances a.wav b.wav data/ --text "One." --text "Two." --model model.gguf
        valle-convert utterances data/ --list recordings.tsv --model model.gguf
    """,
    "speak": """
        valle-convert speak model.gguf "Hello." --voice prompt.wav --codec codec.gguf -o hello.wav
        valle-convert speak model.gguf - -o - < text.txt | ffplay -nodisp -
        valle-convert speak model.gguf --task ns --source noisy.wav -o clean.wav
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
        valle-convert codec facebook/encodec_24khz encodec.bin  # for encodec.cpp
    """,
    "doctor": """
        valle-convert doctor  # exit code 3: something is missing
    """,
}
EXAMPLES = {name: cleandoc(text) for name, text in _EXAMPLES.items()}
