"""Programs that people have: OpenAI's client, and requests in the form that others send."""

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest
from audio.small_codec import save_codec
from serve.servers import MINIATURE, SPEECH, samples_of, serving
from vallex_golden import CHECKPOINT

from valle_convert import plan_conversion, write_gguf
from valle_convert.audio import EncodecCodec
from valle_convert.families.bundle import Bundle, open_bundle
from valle_convert.serve.gate import Access
from valle_convert.speech.results import SpeakOptions


@pytest.fixture(scope="module")
def program(client: httpx2.Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def test_openai_streams(program: openai.OpenAI) -> None:
    how = {"model": "m", "voice": "deep", "input": "Hello. The old man sees the river."}
    more = {"seed": 3}
    whole = program.audio.speech.create(**how, response_format="pcm", extra_body=more).content
    with program.audio.speech.with_streaming_response.create(
        **how, response_format="pcm", extra_body=more
    ) as answer:
        assert b"".join(answer.iter_bytes()) == whole
    with program.audio.speech.with_streaming_response.create(
        **how, response_format="pcm", stream_format="sse", extra_body=more
    ) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert len(lines) == 4
    assert base64.b64encode(whole[:300]).decode() in lines[0]


def test_openai_understands_an_unknown_voice_and_a_wrong_key(
    program: openai.OpenAI, miniature: Bundle
) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        program.audio.speech.create(model="m", voice="nobody", input="Hello.")
    assert missing.value.code == "voice_not_found"
    with serving(miniature, None, access=Access(api_key="sésame")) as locked:
        how = {"base_url": f"{locked.base_url}/v1", "max_retries": 0}
        with openai.OpenAI(**how, api_key="wrong") as stranger:
            with pytest.raises(openai.AuthenticationError) as refused:
                stranger.models.list()
            assert refused.value.code == "invalid_api_key"
        headers = {"Authorization": "Bearer sésame".encode()}
        assert locked.get("/v1/models", headers=headers).status_code == 200
        assert locked.get("/v1/models").headers["www-authenticate"] == "Bearer"
        assert locked.get("/metrics").status_code == 401
        assert {locked.get(path).status_code for path in ("/", "/health")} == {200}


#: What other programs send, as their sources have it: name, headers, body.
OTHERS = {
    "Open WebUI": (
        {"Authorization": "Bearer sk-1", "X-OpenWebUI-User-Name": "Ann"},
        {"model": "tts-1", "input": "Hello world.", "voice": "alloy"},
    ),
    "SillyTavern": (
        {"Authorization": "Bearer"},
        {
            "input": "Hello world.",
            "response_format": "mp3",
            "voice": "onyx",
            "speed": 1,
            "model": "tts-1",
        },
    ),
    "LibreChat": (
        {"Authorization": "Bearer none", "Accept": "application/json, text/plain, */*"},
        {"input": "Hello world.", "model": "tts-1", "voice": "deep", "backend": "any"},
    ),
    "LibreChat, without voices": ({"Authorization": "Bearer none"}, {"input": "Hello world."}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_others_get_mp3(client: httpx2.Client, name: str) -> None:
    headers, body = OTHERS[name]
    answer = client.post(SPEECH, headers=headers, json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/mpeg")
    samples, rate = samples_of(answer.content)
    assert len(samples) > 0.2 * rate


# Another family


def test_vall_e_x_is_served(tmp_path: Path) -> None:
    write_gguf(plan_conversion(CHECKPOINT), tmp_path / "x.gguf")
    bundle = open_bundle(tmp_path / "x.gguf")
    codec = EncodecCodec(save_codec(tmp_path / "codec", codebook_size=bundle.model.codebook_size))
    folder = tmp_path / "voices"
    folder.mkdir()
    for name in ("mute", "told"):
        shutil.copy(MINIATURE / "voice-plain.flac", folder / f"{name}.flac")
    (folder / "told.txt").write_text("Good morning everybody.")
    defaults = SpeakOptions(max_seconds=0.2)
    with serving(bundle, folder, codec=codec, defaults=defaults) as client:
        wanted = {"input": "Hello. Good morning.", "language": "en", "seed": 1, "voice": "mute"}
        refused = client.post(SPEECH, json=wanted)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_request")
        heard = []
        for change in ({"voice": "told"}, {"voice_text": "Good morning everybody."}):
            answer = client.post(SPEECH, json={**wanted, "response_format": "wav", **change})
            assert answer.status_code == 200, answer.text
            heard.append(answer.content)
        assert heard[0] == heard[1]
        samples, rate = samples_of(heard[0])
        assert len(samples) / rate == pytest.approx(0.4, abs=0.05)
        foreign = client.post(SPEECH, json={**wanted, "guidance": 2})
        assert foreign.json()["error"]["param"] == "guidance"
