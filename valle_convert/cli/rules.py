"""Which options need another one, and which exclude each other, for all commands.

A condition names parameters, by their Python names; one of them must be given, with any value or
with one of several: `"text task=vc|ns"`.
"""

import re
from collections.abc import Mapping

import typer

# Without a text or a task on a recording, `speak` only decodes saved codes.
_SPEAKS = "text task=vc|ns|sr"

NEEDS: Mapping[str, Mapping[str, str]] = {
    "evaluate": {
        "config": "checkpoint",
        **dict.fromkeys(("sentences", "codec", "asr", "max_nll", "min_retrieval"), "listen"),
        "voice": "sentences",
        "max_wer": "asr",
    },
    "scan": {"out": "target_bits max_kl"},
    "serve": {"allow_voices": "voices"},
    "publish": {"message": "repository"},
    "speak": {
        **dict.fromkeys(("voice", "phonemes"), "text"),
        "voice_text": "voice",
        "source": "task=vc|ns|sr",
        **dict.fromkeys(("save_codes", "keep_partial", "language", "temperature", "seed"), _SPEAKS),
        **dict.fromkeys(("set_", "lora", "threads", "tune", "parallel", "gpu_layers"), _SPEAKS),
    },
}
EXCLUDES: Mapping[str, Mapping[str, str]] = {
    "quantize": {"types": "type_"},
    "evaluate": {"save_reference": "reference"},
    "scan": {"max_kl": "target_bits"},
    "utterances": {"list_": "audio text"},
    "tokenize": {"file": "text"},
    "speak": {
        "codes": "task=vc|ns|sr",
        "voice": "task=ns|sr",
        "parallel": "codes phonemes task=vc|ns|sr",
        "json_": "out=-",
    },
}


def check(context: typer.Context) -> None:
    command = str(context.info_name)
    for name, needed in NEEDS.get(command, {}).items():
        if _is_given(context, name) and not any(_holds(context, one) for one in needed.split()):
            words = " or ".join(_shown(context, one) for one in needed.split())
            raise typer.BadParameter(
                f"it has no effect without {words}.", param_hint=_shown(context, name)
            )
    for name, others in EXCLUDES.get(command, {}).items():
        for one in others.split():
            if _is_given(context, name) and _holds(context, one):
                raise typer.BadParameter(
                    f"it cannot be combined with {_shown(context, one)}.",
                    param_hint=_shown(context, name),
                )


def _is_given(context: typer.Context, parameter: str) -> bool:
    """Whether the user set a parameter, even to its default."""
    # click has a class for where a value comes from, which typer does not offer.
    origin = getattr(context.get_parameter_source(parameter), "name", "DEFAULT")
    value = context.params.get(parameter)  # 0 is one, and is equal to False
    return value is not None and value is not False and origin not in ("DEFAULT", "DEFAULT_MAP")


def _holds(context: typer.Context, condition: str) -> bool:
    name, _, values = condition.partition("=")
    if not values:
        return _is_given(context, name)
    return str(context.params.get(name)) in values.split("|")


def _shown(context: typer.Context, condition: str) -> str:
    """A parameter, with values or without, as the user types it."""
    name, _, values = condition.partition("=")
    param = next(one for one in context.command.params if one.name == name)
    if param.param_type_name == "option":
        values = values.replace("True", "")  # of a flag, its name says it
        return " ".join(filter(None, (max(param.opts, key=len), values)))
    return re.sub(r"[][{}]|\.\.\.", "", str(param.make_metavar(context)))
