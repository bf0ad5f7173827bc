from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import pytest
from pydantic import BaseModel

from oxherd.context import Context
from oxherd.errors import PayloadInvalid, UnknownJob, UsageError
from oxherd.worker.handlers import MAX_PAYLOAD, find_handler, make_handler, read_payload


class Model(BaseModel):
    order: int
    tenant: str = "none"


@dataclass
class Data:
    order: int


class Typed(TypedDict):
    order: int


async def with_model(ctx: Context, payload: Model) -> None: ...
async def with_dataclass(ctx: Context, payload: Data) -> None: ...
async def with_typed_dict(ctx: Context, payload: Typed) -> None: ...
async def with_dict(ctx: Context, payload: dict[str, Any]) -> None: ...
def plain(ctx: Context, payload: Model) -> None: ...


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (with_model, Model(order=7)),
        (with_dataclass, Data(7)),
        (with_typed_dict, {"order": 7}),
        (with_dict, {"order": 7}),
    ],
)
def test_the_payload_arrives_as_the_handlers_type(function, expected):
    assert read_payload(make_handler("a", function), b'{"order":7}') == (expected, None)


def test_the_tenant_is_read_off_any_payload():
    assert read_payload(make_handler("a", with_dict), b'{"tenant":"acme"}')[1] == "acme"
    assert read_payload(make_handler("a", with_dict), b'{"tenant":5}')[1] is None


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "not JSON"),
        (b"{oops", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "an array"),
        (b"null", "null"),
        (b'"text"', "a string"),
        (b"{}", "order: Field required"),
        (b'{"order":"many"}', "order: Input should be a valid integer"),
        (b'{"a":"' + b"x" * MAX_PAYLOAD + b'"}', "at most"),
    ],
)
def test_a_bad_payload_names_the_field_and_the_expected_type(raw, said):
    with pytest.raises(PayloadInvalid, match=said):
        read_payload(make_handler("a", with_model), raw)


def test_the_offending_value_is_not_repeated():
    with pytest.raises(PayloadInvalid) as caught:
        read_payload(make_handler("a", with_model), b'{"order":"my-password"}')
    assert "my-password" not in str(caught.value)


def test_an_unknown_job_name_lists_the_known_ones():
    with pytest.raises(UnknownJob, match=r"'c'.*a, b"):
        find_handler({"b": make_handler("b", with_dict), "a": make_handler("a", with_dict)}, "c")


def test_plain_functions_are_told_from_async_ones():
    assert not make_handler("a", plain).is_async
    assert make_handler("a", with_model).is_async


def test_a_handler_with_the_wrong_shape_is_refused():
    async def one(ctx: Context) -> None: ...

    with pytest.raises(UsageError, match="1 parameters"):
        make_handler("a", one)


def test_unresolvable_type_hints_are_named():
    async def odd(ctx: Context, payload: Missing) -> None: ...  # noqa: F821

    with pytest.raises(UsageError, match="Missing"):
        make_handler("a", odd)


def test_a_sealed_field_is_opened_before_the_payload_is_validated():
    def unseal(data, job, tenant):
        assert (job, tenant) == ("a", "acme")
        data["order"] = 7

    raw = b'{"order":{"$sealed":"oxherd1.x"},"tenant":"acme"}'
    for function, expected in (
        (with_model, Model(order=7, tenant="acme")),
        (with_dict, {"order": 7, "tenant": "acme"}),
    ):
        assert read_payload(make_handler("a", function), raw, unseal) == (expected, "acme")


def test_a_sealed_field_without_a_vault_is_refused_by_name():
    with pytest.raises(PayloadInvalid, match=r"^order: it is no envelope"):
        read_payload(make_handler("a", with_dict), b'{"order":{"$sealed":"x"}}')
