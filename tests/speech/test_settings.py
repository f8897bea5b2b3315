"""Settings by flat names are the fields of `SpeakOptions`, each once."""

from dataclasses import fields

import pytest

from valle_convert.errors import InputError
from valle_convert.families import families
from valle_convert.speech.results import SpeakOptions
from valle_convert.speech.settings import parse_settings, settings, with_settings

#: A value that is not the default.
OTHER = {int: "7", float: "0.5", str: "en"}


def test_every_field_is_a_setting_with_help() -> None:
    assert all(one.help for one in settings().values())
    own = {"language", "voice_text", "seed"}  # options of their own
    assert {one.field for one in settings().values()} | own == {
        field.name for field in fields(SpeakOptions)
    }


@pytest.mark.parametrize("name", sorted(settings()))
def test_a_setting_changes_its_field_alone(name: str) -> None:
    setting, before = settings()[name], SpeakOptions(seed=1)
    text = setting.choices[-1] if setting.choices else OTHER[setting.kind]
    values = parse_settings([f"{name.replace('_', '-')}={text}"])
    after = with_settings(before, values)
    changed = [
        field.name
        for field in fields(after)
        if getattr(after, field.name) != getattr(before, field.name)
    ]
    assert changed == [setting.field]
    assert str(next(iter(values.values()))) == text
    assert any(setting.field in family.speaks_with for family in families())


@pytest.mark.parametrize(
    "given",
    ["", "top_k", "=3", "tempo=1", "top_k=x", "top_p=nan", "mode=best", "seed=3", "top_k=1,"],
)
def test_what_is_no_setting_is_refused(given: str) -> None:
    with pytest.raises(InputError, match="--set") as refused:
        parse_settings([given])
    assert len(str(refused.value)) <= 200
