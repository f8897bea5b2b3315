"""How good and how fast a model's files are: the same passes on them and on the reference.

The reference is the checkpoint in PyTorch, or, where there is none, the files that were
quantized, on the same llama.cpp. Its logits are computed once and kept (a few megabytes).

    quality   every head and task over the examples: divergence of the distributions
    greedy    the codes of a decode without randomness, compared with the reference's
    speed     milliseconds of one AR step and one NAR pass
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from valle_convert.errors import InputError
from valle_convert.families.family import AnyFamily, Case, Speed
from valle_convert.metrics import Logits, kl_divergence
from valle_convert.network.protocol import AnyNetwork
from valle_convert.progress import Advance

ALL = "all"


@dataclass(frozen=True)
class Quality:
    """The distance of predictions from the reference's; divergences are in nats per prediction."""

    n_rows: Annotated[int, Meta(gt=0)]
    kl_mean: Annotated[float, Meta(ge=0)]
    kl_p99: float
    kl_max: float
    nmse: float  # squared error of the logits over the energy of the reference's
    best_code: Annotated[float, Meta(ge=0, le=1)]  # part with the same most likely code


@dataclass(frozen=True)
class Greedy:
    """Codes of a decode without randomness that stay equal."""

    ar_frames: int  # frames that the reference's AR spoke, over all utterances
    ar_equal: float  # part of them that are the same
    ar_before_first: float  # mean number of frames before the first difference
    nar_codes: int  # codes that the NAR levels gave to these frames
    nar_equal: float  # part of them that are the same; each level reads those before it


@dataclass(frozen=True)
class Measured:
    """Everything about one file; `quality` by head, and over all under `all`."""

    quality: dict[str, Quality]
    greedy: Greedy
    speed: Speed

    def __post_init__(self) -> None:
        if ALL not in self.quality:
            raise ValueError(f"there is no quality over {ALL} heads")


@dataclass(frozen=True, eq=False)
class Expected:
    """The results of the reference: its logits for each case, and the codes [frames, levels] that
    it speaks for each example.
    """

    name: str
    cases: tuple[tuple[Case[Any], Logits], ...]
    examples: tuple[Any, ...]
    spoken: tuple[NDArray[Any], ...]


def run_reference(
    family: AnyFamily, network: AnyNetwork, name: str, examples: Iterable[Any], advance: Advance
) -> Expected:
    cases: list[tuple[Case[Any], Logits]] = []
    given: list[Any] = []
    spoken: list[NDArray[Any]] = []
    for example in examples:
        cases += [(case, case.run(network)) for case in family.trials.cases(network.model, example)]
        given.append(example)
        level_0 = family.trials.speak_level_0(network, example)
        spoken.append(family.trials.speak_levels(network, example, level_0))
        advance(1)
    return Expected(name, tuple(cases), tuple(given), tuple(spoken))


def measure(
    family: AnyFamily, network: AnyNetwork, expected: Expected, advance: Advance
) -> Measured:
    """Compare a network with the reference; `advance` is called after each case."""
    rows: dict[str, list[NDArray[np.float64]]] = {}
    for case, logits in expected.cases:
        found = case.run(network)
        if found.shape != logits.shape:  # read from a file
            raise InputError(
                f"{case.name} has logits of shape {found.shape}, and those of the reference have "
                f"{logits.shape}; make it again with --save-reference."
            )
        rows.setdefault(case.head, []).append(compare_rows(logits, found))
        advance(1)
    quality = {ALL: quality_of(list(chain.from_iterable(rows.values())))}
    quality |= {head: quality_of(of_head) for head, of_head in rows.items()}
    speed = family.trials.measure_speed(network)
    return Measured(quality, measure_greedy(family, network, expected), speed)


def measure_greedy(family: AnyFamily, network: AnyNetwork, expected: Expected) -> Greedy:
    """Speak the same, without randomness; the NAR finishes what the *reference's* AR said."""
    n_frames = n_equal = n_before = n_codes = n_codes_equal = 0
    for example, spoken in zip(expected.examples, expected.spoken, strict=True):
        frames = len(spoken)
        found = family.trials.speak_level_0(network, example)[:frames]
        same = np.zeros(frames, bool)
        same[: len(found)] = found == spoken[: len(found), 0]
        n_frames += frames
        n_equal += int(same.sum())
        n_before += frames if same.all() else int(same.argmin())
        finished = family.trials.speak_levels(network, example, spoken[:, 0])
        n_codes += finished[:, 1:].size
        n_codes_equal += int((finished[:, 1:] == spoken[:, 1:]).sum())
    return Greedy(
        ar_frames=n_frames,
        ar_equal=n_equal / n_frames if n_frames else 1.0,
        ar_before_first=n_before / len(expected.spoken) if expected.spoken else 0.0,
        nar_codes=n_codes,
        nar_equal=n_codes_equal / n_codes if n_codes else 1.0,
    )


def compare_rows(expected: Logits, found: Logits) -> NDArray[np.float64]:
    """For each prediction: divergence, whether the best code is the same, error, energy; [4, n]."""
    return np.stack(
        [
            kl_divergence(expected, found),
            expected.argmax(-1) == found.argmax(-1),
            np.square(found.astype(np.float64) - expected).sum(-1),
            np.square(expected, dtype=np.float64).sum(-1),
        ]
    )


def quality_of(rows: Sequence[NDArray[np.float64]]) -> Quality:
    divergences, same, errors, energies = np.concatenate(rows, axis=1)
    energy = float(energies.sum())
    return Quality(
        n_rows=len(divergences),
        kl_mean=float(divergences.mean()),
        kl_p99=float(np.quantile(divergences, 0.99)),
        kl_max=float(divergences.max()),
        nmse=float(errors.sum()) / energy if energy else 0.0,
        best_code=float(same.mean()),
    )
