"""What a request gets is what the speaker says, in every format."""

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import numpy as np
import pytest
from serve.servers import CODEC, DEFAULTS, MINIATURE, SPEECH, samples_of, serving
from support import ONE_THREAD

from miniature.world import WorldCodec, WorldSettings, analyse
from valle_convert.audio.files import to_int16
from valle_convert.families.bundle import Bundle
from valle_convert.serve.sound import SOUND_FORMATS

TEXT = "Hello world. The old man sees the river."


@pytest.fixture(scope="module")
def spoken(miniature: Bundle) -> np.ndarray:
    """What `speak` gives for the same recording and seed."""
    with miniature.family.speaker(
        miniature, codec=WorldCodec(CODEC), settings=ONE_THREAD
    ) as speaker:
        said = speaker.speak(TEXT, MINIATURE / "voice-plain.flac", replace(DEFAULTS, seed=7))
    assert said.audio is not None
    return said.audio.samples


@pytest.mark.parametrize("name", SOUND_FORMATS)
def test_a_request_gets_what_speak_says(
    client: httpx2.Client, spoken: np.ndarray, name: str
) -> None:
    wanted = {"input": TEXT, "voice": "plain", "seed": 7, "response_format": name}
    answer = client.post(SPEECH, json=wanted)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == SOUND_FORMATS[name].media_type
    assert answer.headers["x-seed"] == "7"
    exact = to_int16(spoken, 1 / max(1.0, float(np.abs(spoken).max())))
    if name == "pcm":
        assert answer.content == exact.tobytes()
        return
    samples, rate = samples_of(answer.content)
    assert rate == 24_000
    assert abs(len(samples) - len(exact)) < 0.1 * rate  # encoders add silence
    if name in ("wav", "flac"):
        assert np.array_equal(np.rint(samples * 32768), exact)
    else:
        loudness = [np.sqrt(np.mean(np.square(one))) for one in (samples, exact / 32767)]
        assert loudness[0] == pytest.approx(loudness[1], rel=0.2)


def events(lines: Iterator[str]) -> list[dict[str, object]]:
    return [json.loads(line.removeprefix("data: ")) for line in lines if line]


def test_events_have_the_same_sound_and_come_sentence_by_sentence(
    client: httpx2.Client, spoken: np.ndarray
) -> None:
    wanted = {"input": TEXT, "seed": 7, "response_format": "pcm", "stream_format": "sse"}
    with client.stream("POST", SPEECH, json=wanted) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        *deltas, done = events(answer.iter_lines())
    assert [one["type"] for one in deltas] == ["speech.audio.delta"] * 3
    sound = b"".join(base64.b64decode(str(one["audio"])) for one in deltas)
    assert len(sound) == 2 * len(spoken)
    assert done["type"] == "speech.audio.done"
    assert done["usage"] == {
        "input_tokens": len(TEXT),
        "output_tokens": (tokens := round(len(spoken) / 24_000 * 40)),
        "total_tokens": len(TEXT) + tokens,
    }


@pytest.mark.parametrize(
    ("voice", "same_as"),
    [
        (None, "plain"),
        ("alloy", "plain"),
        ("onyx", "deep"),
        ({"id": "deep"}, "deep"),
        ("", "plain"),
    ],
)
def test_names_of_voices_lead_to_voices(client: httpx2.Client, voice: object, same_as: str) -> None:
    def heard(name: object) -> bytes:
        wanted = {"input": "Hello.", "seed": 1, "voice": name, "response_format": "pcm"}
        return client.post(SPEECH, json=wanted).raise_for_status().content

    assert heard(voice) == heard(same_as)
    assert heard("deep") != heard("plain")


def test_every_answer_has_an_id_of_its_own_and_a_seed_that_repeats_it(
    client: httpx2.Client,
) -> None:
    wanted = {"input": "Hello.", "response_format": "pcm", "model": "tts-1", "unknown": [1]}
    first = client.post(SPEECH, json=wanted)
    again = client.post(SPEECH, json={**wanted, "seed": int(first.headers["x-seed"])})
    assert first.content == again.content
    assert len({first.headers["x-request-id"], again.headers["x-request-id"]}) == 2


def test_speed_changes_the_length_and_not_the_pitch(client: httpx2.Client) -> None:
    def heard(speed: float) -> tuple[int, float]:
        wanted = {"input": TEXT, "seed": 7, "speed": speed, "response_format": "pcm"}
        answer = client.post(SPEECH, json=wanted).raise_for_status()
        assert client.post(SPEECH, json=wanted).content == answer.content
        samples = np.frombuffer(answer.content, "<i2").astype(np.float32) / 32768
        frames = analyse(samples, WorldSettings())
        return len(samples), float(np.median(frames[frames[:, 0] > 0, 1]))

    length, log_pitch = heard(1)
    for speed in (0.5, 0.8, 2):
        found, same_pitch = heard(speed)
        assert found == pytest.approx(length / speed, abs=4)
        assert same_pitch == pytest.approx(log_pitch, abs=np.log(2) / 6)


def test_options_of_the_request_come_before_those_of_the_server(client: httpx2.Client) -> None:
    wanted = {"input": "Hello.", "response_format": "pcm", "temperature": 0, "guidance": 1.5}
    seeds = [client.post(SPEECH, json={**wanted, "seed": seed}).content for seed in (1, 2)]
    assert seeds[0] == seeds[1]  # nothing is drawn
    assert seeds[0] != client.post(SPEECH, json={**wanted, "seed": 1, "guidance": 0}).content


def test_lists_and_health(client: httpx2.Client) -> None:
    for path in ("/v1/voices", "/v1/audio/voices"):
        found = client.get(path).json()
        assert (
            found["voices"]
            == found["data"]
            == [{"id": name, "name": name} for name in ("deep", "plain")]
        )
    for path in ("/v1/models", "/v1/audio/models"):
        found = client.get(path).json()
        assert found["models"] == [{"id": "miniature-q8_0"}]
        assert (found["data"][0]["id"], found["object"]) == ("miniature-q8_0", "list")
    assert client.get("/health").json() == {
        "status": "ok",
        "model": "miniature-q8_0",
        "type": "Q8_0",
    }


def test_a_model_speaks_without_voices(miniature: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (None, tmp_path / "empty"):
        with serving(miniature, folder) as alone:
            assert alone.get("/v1/voices").json()["voices"] == []
            answer = alone.post(SPEECH, json={"input": "Hello.", "voice": "alloy"})
            assert answer.status_code == 200
            assert alone.post(SPEECH, json={"input": "Hi.", "voice": "anna"}).status_code == 404
