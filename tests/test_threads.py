"""Work that is done ahead in another thread."""

import threading
from collections.abc import Iterator

import pytest

from valle_convert.threads import made_ahead


def test_items_come_in_order_each_made_while_the_one_before_is_used() -> None:
    made = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for i in range(3):
            made[i].set()
            yield i

    seen = []
    for item in made_ahead(items()):
        assert item == 2 or made[item + 1].wait(60)
        seen.append(item)
    assert seen == [0, 1, 2]


def test_an_exception_comes_where_its_item_would() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("second")

    source = made_ahead(items())
    assert next(source) == 1
    with pytest.raises(KeyError, match="second"):
        next(source)
