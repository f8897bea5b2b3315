"""Japanese in VALL-E X's symbols: OpenJTalk's phones and accents."""

import pytest

from valle_convert.families.vallex.text import japanese
from valle_convert.families.vallex.text.japanese import japanese_symbols


@pytest.mark.parametrize(
    ("text", "symbols"),
    [
        # As a voice file of the original project has them.
        ("レベルが", "ɾe↓beɾɯga"),
        ("上がったそうです", "a↑gat#ta so↑ode↓sɯ*"),
        # One accent at the first mora; a rise without a fall.
        ("彼らは", "ka↓ɾeɾawa"),
        ("あんず", "a↑Nzɯ"),
        # Doubled consonants.
        ("結婚 切符 待って 雑誌", "ke↑k#koN ki↑p#pɯ ma↓t#te za↑sʃi"),
        # The syllabic nasal before other sounds, but not beyond its phrase.
        ("散歩 漢字 案内 三年 文化", "sa↑mpo ka↑n^dʑi a↑nna↓i sa↑nneN bɯ↓ŋka"),
        ("一万五百", "i↑tʃima↓N go↑çakɯ"),
        # Consonants before i, and palatal ones.
        ("にゃんこ ひと ひょう", "n^a↓ŋko çi*↑to ço↓o"),
        ("ふじ りょこう", "ɸɯ↓dʑi ɾjo↑koo"),
        # Marks.
        ("そう、ですね。", "so↑o, de↓sɯ*ne."),
        ("「何」？　はい！", "na↓n^i? ha↓i!"),
    ],
)
def test_text_is_read_by_the_rules(text: str, symbols: str) -> None:
    assert japanese_symbols(text) == (symbols, [])


def test_nothing_is_printed_where_data_goes(capfd: pytest.CaptureFixture[str]) -> None:
    japanese._openjtalk.cache_clear()
    japanese_symbols("はい。")
    assert capfd.readouterr().out == ""
