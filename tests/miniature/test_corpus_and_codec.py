"""The miniature's corpus is the same every time, and its codec keeps what was said."""

from pathlib import Path

import numpy as np
import pytest
from support import PROJECT, model_of, run_python

from miniature import corpus
from miniature.words import UNSEEN
from miniature.world import WORLD_NAME, WorldCodec, analyse, is_world_codec
from valle_convert.audio import Audio, open_codec
from valle_convert.errors import InputError
from valle_convert.listening.measures import mel_cepstra, mel_cepstral_distance
from valle_convert.model.spec import Codec

CODEC = PROJECT / "miniature" / "codec.safetensors"


@pytest.fixture(scope="module")
def codec() -> WorldCodec:
    return WorldCodec(CODEC)


def digest_of_a_new_process(seed: int) -> str:
    program = (
        "from miniature import corpus\n"
        f"for one in corpus.training_set({seed}, 6): print(corpus.digest(one).hex())"
    )
    return run_python("-c", program, check=True).stdout.strip()


def test_the_corpus_is_the_same_every_time() -> None:
    first = digest_of_a_new_process(3)
    assert digest_of_a_new_process(3) == first
    assert digest_of_a_new_process(4) != first


def test_test_sentences_and_unseen_words_are_never_trained_on() -> None:
    source = corpus.sentences(1)
    trained = {
        text for text in (next(source) for _ in range(5000)) if corpus.part_of(text) == "training"
    }
    words = {word for text in trained for word in text.lower().rstrip(".?").split()}
    assert len(words) > 600
    assert words.isdisjoint(UNSEEN)
    bare = {text.lower().rstrip(".?") for text in trained}
    for unseen in (False, True):
        held_out = {
            text.lower().rstrip(".?") for text in corpus.held_out_texts(1, 40, unseen=unseen)
        }
        assert held_out.isdisjoint(bare)
        for text in held_out:
            assert set(text.split()).isdisjoint(UNSEEN) != unseen
    assert "hello world" not in bare


def test_words_voicing_and_pitch_survive_the_codec(codec: WorldCodec) -> None:
    said = [corpus.speak(text, "plain") for text in corpus.held_out_texts(7, 12)]
    originals = [analyse(one.samples, codec.settings) for one in said]
    cepstra = [mel_cepstra(Audio(one.samples, corpus.SAMPLE_RATE)) for one in said]
    for i, one in enumerate(said):
        codes = codec.encode(Audio(one.samples, corpus.SAMPLE_RATE))
        assert codes.shape == (len(originals[i]), 4)
        sound = codec.decode(codes)
        assert sound.sample_rate == corpus.SAMPLE_RATE
        assert abs(sound.seconds - len(one.samples) / corpus.SAMPLE_RATE) < 0.05
        assert mel_cepstral_distance(mel_cepstra(sound), cepstra).argmin() == i
        kept = codec.frames(codes)
        voiced, was_voiced = kept[:, 0] > 0.5, originals[i][:, 0] > 0.5
        assert (voiced == was_voiced).mean() > 0.9
        both = voiced & was_voiced
        assert (
            np.median(np.abs(kept[both, 1] - originals[i][both, 1])) < np.log(2) / 12
        )  # a semitone


def test_codes_of_another_codec_are_a_mistake(codec: WorldCodec) -> None:
    with pytest.raises(ValueError, match="codes from 0 to 256 of 256"):
        codec.decode(np.array([[0, 256]], np.int32))
    with pytest.raises(ValueError, match="5 levels"):
        codec.decode(np.zeros((3, 5), np.int32))
    assert len(codec.decode(np.zeros((0, 4), np.int32)).samples) == 0


def test_the_models_codec_is_opened_and_no_other(codec: WorldCodec) -> None:
    world = codec.description
    assert (world.name, world.sample_rate, world.frame_rate) == (WORLD_NAME, 24_000, 40.0)
    assert isinstance(open_codec(CODEC, model_of(world, 4, 256)), WorldCodec)
    with pytest.raises(InputError, match="4 levels of 256 codes, and the model was trained on 8"):
        open_codec(CODEC, model_of(Codec("encodec-24khz", 24_000, 75.0)))
    with pytest.raises(InputError, match="world-rvq, but no codec was given"):
        open_codec(None, model_of(world, 4, 256))
    with pytest.raises(InputError, match="fixtures is another file"):
        open_codec(PROJECT / "fixtures", model_of(world, 4, 256))


def test_a_damaged_codec_file_is_refused(tmp_path: Path) -> None:
    whole = CODEC.read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[:-1000])
    assert is_world_codec(cut)
    with pytest.raises(InputError, match="is not a complete safetensors file"):
        WorldCodec(cut)
    nan = tmp_path / "nan.safetensors"
    nan.write_bytes(whole[:-4] + np.float32("nan").tobytes())
    with pytest.raises(InputError, match="is damaged"):
        WorldCodec(nan)
    assert not is_world_codec(tmp_path)
    assert not is_world_codec(PROJECT / "README.md")
