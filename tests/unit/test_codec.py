import dataclasses
import datetime as dt
import enum
import math
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from oxherd.codec import decode, encode
from oxherd.errors import ResultInvalid
from oxherd.settings import Secret


class Colour(enum.Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: int


class Order(BaseModel):
    id: int
    total: Decimal
    card: SecretStr = SecretStr("4111")


@dataclasses.dataclass
class Basket:
    orders: list[Order]
    tags: set[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    at: dt.date


ENCODED = [
    (None, b"null"),
    ({"a": [1, 2.5, True, "ä"]}, '{"a":[1,2.5,true,"ä"]}'.encode()),
    ((1, 2), b"[1,2]"),
    (Point(1, 2), b"[1,2]"),
    ({3, 1}, b"[1,3]"),
    (frozenset({"b", "a"}), b'["a","b"]'),
    ({1: "a"}, b'{"1":"a"}'),
    (Decimal("1.20"), b'"1.20"'),
    (Colour.RED, b'"red"'),
    (UUID(int=1), b'"00000000-0000-0000-0000-000000000001"'),
    (dt.datetime(2026, 1, 2, 3, 4, tzinfo=dt.UTC), b'"2026-01-02T03:04:00+00:00"'),
    (Slotted(dt.date(2026, 1, 2)), b'{"at":"2026-01-02"}'),
    (Order(id=1, total=Decimal("9.90")), b'{"id":1,"total":"9.90","card":"**********"}'),
    (
        Basket([Order(id=1, total=Decimal(1))], {"new"}),
        b'{"orders":[{"id":1,"total":"1","card":"**********"}],"tags":["new"]}',
    ),
    (Secret("hidden"), b'"***"'),
    (math.nan, b"null"),
]


@pytest.mark.parametrize(("value", "raw"), ENCODED, ids=[type(value).__name__ for value, _ in ENCODED])
def test_what_a_handler_may_return_is_written_as_json(value, raw):
    assert encode(value) == raw


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (object(), "builtins.object"),
        ({"deep": [object()]}, "builtins.object"),
        (b"x", "bytes"),
        (lambda: 1, "builtins.function"),
        (ValueError("x"), "builtins.ValueError"),
        (2**70, "64-bit"),
        ("\ud800", "UTF-8"),
        ({(1, 2): 3}, "key"),
        (dt.timedelta(1), "datetime.timedelta"),
    ],
)
def test_what_json_has_no_word_for_is_an_error_that_names_it(value, named):
    with pytest.raises(ResultInvalid) as caught:
        encode(value, what="the result of step 'a'")
    assert str(caught.value).startswith("the result of step 'a' can't be written as JSON: ")
    assert named in str(caught.value)


def test_a_value_that_holds_itself_is_an_error_and_no_crash():
    loop = []
    loop.append(loop)
    with pytest.raises(ResultInvalid):
        encode(loop)


def test_an_error_while_encoding_carries_no_value_along():
    with pytest.raises(ResultInvalid) as caught:
        encode({"password": "hidden", "broken": object()})
    assert "hidden" not in str(caught.value)
    assert caught.value.__suppress_context__


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(plain)
def test_plain_data_comes_back_as_it_went(value):
    assert decode(encode(value)) == value


@pytest.mark.parametrize("raw", [b"", b"{", b"nope", b"\xff", "{'a': 1}", b"NaN"])
def test_what_is_no_json_is_a_value_error(raw):
    with pytest.raises(ValueError):
        decode(raw)
