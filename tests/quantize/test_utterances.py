from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import golden_checkpoint

from valle_convert.checkpoint import read_checkpoint
from valle_convert.errors import InputError
from valle_convert.families.v5 import FAMILY
from valle_convert.families.v5.facts import describe
from valle_convert.families.v5.trials import cases, read_utterance
from valle_convert.model.spec import Model
from valle_convert.quantize.examples import Examples


@pytest.fixture(scope="module")
def model() -> Model:
    return describe(read_checkpoint(golden_checkpoint("ar-nar-len"))).model


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write an utterance that is right but for what is given; None leaves an array out."""

    def write(name: str = "a.npz", **arrays: object) -> Path:
        values: dict[str, object] = {
            "phonemes": np.array([1, 30, 31, 2]),
            "response": np.full((12, 8), 63),
            "prompt": np.zeros((5, 8), np.int32),
            "language": np.array(2),
        }
        values |= arrays
        path = tmp_path / name
        np.savez(path, **{k: v for k, v in values.items() if v is not None})  # type: ignore[arg-type]
        return path

    return write


def test_an_utterance_is_read_as_it_was_written(model: Model, write: Write) -> None:
    utterance = read_utterance(write(), model, seed=(0,))
    assert utterance.condition.phonemes.tolist() == [1, 30, 31, 2]
    assert utterance.condition.language == 2
    assert utterance.condition.prompt is not None
    assert utterance.condition.prompt.shape == (5, 8)
    assert (utterance.response == 63).all()
    assert utterance.digits.tolist() == [0, 1, 2]  # twelve frames
    assert set(utterance.masked) <= {63, model.config.special_code}


def test_prompt_and_language_may_be_left_out_and_the_order_of_bytes_does_not_matter(
    model: Model, write: Write
) -> None:
    codes = np.arange(96).reshape(12, 8) % 64
    given = [codes, np.asfortranarray(codes)]
    plain, turned = (
        read_utterance(write(response=one, prompt=None, language=None), model, seed=(0,))
        for one in given
    )
    np.testing.assert_array_equal(plain.response, turned.response)
    assert plain.condition.prompt is None
    assert plain.condition.language == 0
    assert len(list(cases(model, plain))) > 10


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"phonemes": None}, "has no 'phonemes'"),
        ({"response": None}, "has no 'response'"),
        ({"response": np.full((12, 7), 1)}, r"\[12, 7\], expected integers \[frames, 8\]"),
        ({"response": np.full((12, 8), 64)}, "has 64, expected 0 to 63"),
        ({"response": np.full((12, 8), -1)}, "has -1"),
        ({"response": np.zeros((0, 8), int)}, r"int64 \[0, 8\]"),
        ({"phonemes": np.array([1.0, 2.0])}, "expected integers"),
        ({"phonemes": np.array([[1, 2]])}, r"int64 \[1, 2\]"),
        ({"phonemes": np.array([256])}, "has 256"),
        ({"language": np.array(6)}, "has 6, expected 0 to 5"),
        ({"language": np.array([1, 2])}, r"language is int64 \[2\], expected one integer"),
        ({"prompt": np.full((5, 8), 99)}, "prompt has 99"),
        ({"phonemes": np.ones(22_750, int)}, "more than the model's context"),
        ({"phonemes": np.ones(300_000, int)}, "unpack to more than"),
        ({"phonemes": np.array([None, 1], object)}, "Object arrays cannot be loaded"),
    ],
)
def test_what_is_not_of_the_format_or_not_of_the_model_is_refused(
    model: Model, write: Write, arrays: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_utterance(write(**arrays), model, seed=(0,))


def test_a_folder_without_utterances_is_refused(model: Model, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match=r"has no \.npz files"):
            Examples.choose(FAMILY, model, folder, None)


def test_given_utterances_come_in_the_order_of_their_names_and_their_bytes_count(
    model: Model, write: Write, tmp_path: Path
) -> None:
    write("b.npz", phonemes=np.array([1, 9, 2]))
    write("a.npz")
    write("c.npz", response=np.full((4, 8), 1))
    first = Examples.choose(FAMILY, model, tmp_path, None)
    assert [len(one.condition.phonemes) for one in first] == [4, 3, 4]
    assert (first.count, first.n_texts) == (3, 2)  # two recordings of one text are one text
    write("b.npz", phonemes=np.array([1, 8, 2]))
    assert Examples.choose(FAMILY, model, tmp_path, None).digest != first.digest


def test_seeded_utterances_are_many_different_ones_of_bounded_length(model: Model) -> None:
    utterances = list(Examples.seeded(FAMILY, model, 20, seed=3))
    assert len({one.response.tobytes() for one in utterances}) == 20
    lengths = [len(one.response) for one in utterances]
    assert max(lengths) == max(lengths[:8])  # they do not grow for ever
    again = list(Examples.seeded(FAMILY, model, 20, seed=3))
    assert all((a.response == b.response).all() for a, b in zip(utterances, again, strict=True))
    assert Examples.seeded(FAMILY, model, 9, seed=0).n_texts == 9
