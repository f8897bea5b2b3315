"""A model that goes on with a voice is told what it says by the file beside the recording."""

import shutil
from pathlib import Path

import pytest
from audio.small_codec import save_codec
from serve.servers import MINIATURE, SPEECH, samples_of, serving
from vallex_golden import CHECKPOINT

from valle_convert import plan_conversion, write_gguf
from valle_convert.audio import EncodecCodec
from valle_convert.families.bundle import open_bundle
from valle_convert.speech.results import SpeakOptions


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
