"""`valle-convert repair OLD.gguf NEW.gguf`: fix a file made by llama.cpp's LLaMA converter."""

from pathlib import Path

from valle_convert.cli.convert import VERIFY, VerifyChoice, carry_out
from valle_convert.cli.options import BIASES, FORCE, JSON, MODEL, TOKENIZER, arg, local_gguf, opt


def repair(
    *,
    old: Path = arg(
        "OLD.gguf",
        "A VALL-E that llama.cpp's converter wrote as a `llama` model, quantized or not.",
    ),
    out: Path = arg("NEW.gguf", "Output file."),
    config: Path | None = opt(
        "YAML or JSON that overrides the config. Default: the file's own values, else those of the "
        "published models.",
        "FILE",
        MODEL,
    ),
    biases: Path | None = BIASES,
    tokenizer: Path | None = TOKENIZER,
    verify: VerifyChoice | None = VERIFY,
    json_: bool = JSON,
    force: bool = FORCE,
) -> None:
    """Repair a GGUF file of llama.cpp's LLaMA converter.

    Such a file loads but generates garbage. Quantized rows are copied, not quantized again; only if
    tables and heads have different types, both become float16. What the old file lacks is assumed
    to be as in the published models and reported; --config overrides it.
    """
    from valle_convert.api import plan_repair
    from valle_convert.families.family import Choices
    from valle_convert.files import check_outputs, protected

    with protected([old, config, biases, tokenizer]):
        check_outputs({"NEW.gguf": out}, force=force)
        plan = plan_repair(
            local_gguf(old), config=config, biases=biases, choices=Choices(tokenizer=tokenizer)
        )
        carry_out(plan, out, verify, force=force, as_json=json_)
