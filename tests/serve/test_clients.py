"""Programs that people have: OpenAI's client, and requests in the form that others send."""

import base64
from collections.abc import Iterator

import httpx2
import openai
import pytest
from serve.servers import SPEECH, samples_of, serving

from valle_convert.families.bundle import Bundle
from valle_convert.serve.gate import Access


@pytest.fixture(scope="module")
def program(client: httpx2.Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def test_openai_speaks(program: openai.OpenAI) -> None:
    said = program.audio.speech.create(model="tts-1", voice="alloy", input="Hello world.")
    samples, rate = samples_of(said.content)
    assert 0.2 < len(samples) / rate < 2


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
