"""Reports of runs that nobody made, of any number of types, heads and sentences."""

from collections.abc import Sequence

import numpy as np
from msgspec import structs

from valle_convert.audio.files import Audio
from valle_convert.families.family import Speed
from valle_convert.listening.listen import (
    DISTANCE,
    DURATION,
    EVERYWHERE,
    NLL,
    PHONEMES,
    RETRIEVAL,
    WORDS,
    Listened,
)
from valle_convert.listening.measures import Tally
from valle_convert.quantize.limits import Gates
from valle_convert.quantize.listening import FileSpeech, Listening
from valle_convert.quantize.measurements import Compared, Evaluated, TensorReport, Verified
from valle_convert.quantize.quality import ALL, Greedy, Measured, Quality
from valle_convert.quantize.report import EvaluationReport, judged

MIB = 1 << 20
#: Of usual types: bits a weight, and a divergence that such a file may have.
TYPES = {
    "Q8_0": (8.5, 4e-4),
    "Q6_K": (6.56, 9e-4),
    "Q5_K_M": (5.7, 2e-3),
    "Q4_K_M": (4.9, 6e-3),
    "IQ3_XXS": (3.1, 6e-2),
    "Q2_K": (2.8, 0.4),
}
WAYS = ("ar greedy", "ar sampled", "nar-len greedy", "nar-len sampled")


def measured(kl: float, heads: Sequence[str], top_1: float = 0.97) -> Measured:
    quality = {
        head: Quality(100, kl * (1 + i / 5), kl * 4, kl * 9, kl / 3, top_1)
        for i, head in enumerate([ALL, *heads])
    }
    return Measured(quality, Greedy(64, 0.28, 12.0, 400, 0.5), Speed(7.3, 81.0, 600))


def verified(name: str, *, right: bool = True) -> Verified:
    outcome = "passed" if right else "failed"
    return Verified(outcome, f"{outcome.upper()}: 1 check of {name}.")  # type: ignore[arg-type]


def listened(n: int, kl: float, seconds: float = 0.5) -> Listened:
    """What is said of `n` sentences: the worse, the larger `kl`."""
    rng = np.random.default_rng(3)
    base = rng.uniform(2.5, 3.5, n)
    places = dict.fromkeys((*WAYS, EVERYWHERE))
    tallies = {
        NLL.name: dict.fromkeys(
            ("ar", "nar.1", "nar.2", EVERYWHERE), Tally.each((base + kl).tolist())
        ),
        RETRIEVAL.name: dict.fromkeys(places, Tally.each([1.0] * n)),
        DISTANCE.name: dict.fromkeys(places, Tally.each((base + 3 + kl).tolist())),
        DURATION.name: dict.fromkeys(places, Tally.each([0.1] * n)),
        WORDS.name: dict.fromkeys(places, Tally.each([0.1] * n)),
        PHONEMES.name: dict.fromkeys(("stt", EVERYWHERE), Tally.each([0.2] * n)),
    }
    time = np.arange(int(24_000 * seconds)) / 24_000
    sound = Audio(np.sin(2 * np.pi * 220 * time).astype(np.float32) * 0.3, 24_000)
    return Listened(tallies, dict.fromkeys(WAYS, (sound,) * min(n, 2)))


def make_report(
    kinds: Sequence[str] = tuple(TYPES),
    *,
    levels: int = 3,
    n_texts: int = 8,
    heard: bool = False,
    layers: int = 2,
) -> EvaluationReport:
    """A run that measured, verified and perhaps listened."""
    heads = ["ar", *(f"nar.{i}" for i in range(1, levels))]
    compared = Compared(
        inputs={},
        source="model-f16.gguf",
        checkpoint=None,
        reference="model.sft in PyTorch, float32",
        sequences=f"{n_texts} given utterances",
        different_texts=n_texts,
        baseline=file_of("F16", measured(4e-7, heads, 0.999)),
    )
    files = []
    for kind in kinds:
        bits, kl = TYPES[kind]
        tensors = [
            TensorReport(f"blk.{layer}.{part}.weight", kind, bits, 20.0 / kl**0.1)
            for layer in range(layers)
            for part in (
                *("attn_q", "attn_k", "attn_v", "attn_output"),
                *("ffn_gate", "ffn_up", "ffn_down"),
            )
        ]
        file = structs.replace(
            file_of(kind, measured(kl, heads)),
            compared=compared,
            verified=verified(f"model-{kind}.gguf"),
            tensors=(*tensors, TensorReport("token_embd.weight", "Q6_K", 6.56, 35.0)),
            speech=speech(n_texts, kl) if heard else None,
        )
        files.append(judged(file, Gates()))
    return EvaluationReport(
        tuple(files),
        command="valle-convert evaluate out/ --types " + ",".join(kinds),
        date="2026-01-01T00:00:00+00:00",
    )


def file_of(kind: str, measured: Measured | None) -> Evaluated:
    bits = TYPES.get(kind, (16.0,))[0]
    return Evaluated(
        name=f"model-{kind}.gguf",
        kind=kind,
        n_bytes=round(bits * 25 * MIB),
        bits_per_weight=bits,
        weights={kind: 200_000_000},
        measured=measured,
    )


def speech(n: int, kl: float) -> FileSpeech:
    return FileSpeech(
        "0", listened(n, kl), listening(n), () if kl < 0.05 else ("NLL 3.4, F16 3.0",)
    )


def listening(n: int) -> Listening:
    base = listened(n, 0.0)
    return Listening(
        baseline=base,
        repeat=listened(n, 0.001),
        repeat_how="seed 1, 1 thread",
        recordings=None,
        recogniser=None,
        references="8 given utterances",
        codec="encodec_24khz",
        names=tuple(f"Sentence number {i} is a sentence like every other one." for i in range(n)),
        sounds=tuple(sound for sound in base.clips[WAYS[0]] if sound is not None),
        n_texts=n,
    )
