from __future__ import annotations

from decimal import Decimal

import pytest

from fakes.openrouter import Refuses
from oxherd.agents import LLM
from oxherd.agents.chat import Malformed
from oxherd.agents.records import read_embeddings, read_generation, read_models
from oxherd.errors import ModelRefused, OutOfCredit


def model(pricing=None, **rest):
    return {"data": [{"id": "a/b", "pricing": pricing or {}, **rest}]}


async def test_prices_are_exact_and_those_below_zero_are_unknown(fake, llm):
    prices = {
        "prompt": "0.00000125",
        "completion": "0",
        "request": "-1",
        "input_cache_read": "0.000000125",
        "image": "x",
    }
    fake.script(model(prices, context_length=200_000, top_provider={"context_length": 128_000}))
    found = (await llm.models())["a/b"]
    assert found.input_price == Decimal("0.00000125")
    assert found.output_price == 0
    assert (found.request_price, found.image_price, found.cache_write_price) == (None, None, None)
    assert found.context_tokens == 128_000


def test_a_router_has_no_price_and_a_local_server_tells_none():
    assert read_models(model({"prompt": "-1", "completion": "-1"}))["a/b"].input_price is None
    local = read_models({"object": "list", "data": [{"id": "llama", "object": "model"}, "x", {}]})
    assert list(local) == ["llama"]
    assert (local["llama"].output_price, local["llama"].context_tokens) == (None, None)


def test_a_list_that_is_none_is_malformed():
    with pytest.raises(Malformed):
        read_models({"models": []})


async def test_a_generation_tells_what_it_was_billed_once_its_record_is_there(fake, llm, pauses):
    fake.bills["gen-x/1"] = Decimal("0.25")
    fake.late = 2
    found = await llm.generation("gen-x/1")
    assert (found.id, found.usage.cost_usd, found.cancelled) == ("gen-x/1", Decimal("0.25"), True)
    assert (found.usage.input_tokens, found.usage.output_tokens) == (11, 6)
    assert pauses == [0.5, 1.0]


async def test_a_generation_that_nobody_knows_stays_unknown(fake, llm, pauses):
    assert await llm.generation("gen-none") is None
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0]


def test_with_the_customers_own_key_the_providers_bill_is_added():
    told = {"id": "g", "total_cost": 0.01, "is_byok": True, "upstream_inference_cost": 0.2}
    assert read_generation({"data": told}).usage.cost_usd == Decimal("0.21")
    assert read_generation({"data": {"id": "g"}}).usage.cost_usd is None


async def test_vectors_come_in_the_order_of_their_texts(fake, llm):
    listed = [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": "AACAPw=="}]
    fake.script({"object": "list", "data": listed, "model": "e", "usage": {"prompt_tokens": 4, "cost": 1e-7}})
    found = await llm.embed("e", ["a", "b"], dimensions=1, purpose="search_query")
    assert found.vectors == [[1.0], [2.0]]
    assert (found.usage.input_tokens, found.usage.cost_usd) == (4, Decimal("0.0000001"))
    assert fake.requests[0]["input_type"] == "search_query"


@pytest.mark.parametrize("data", [[], [{"embedding": None}], [{"embedding": "x"}], None])
def test_missing_vectors_are_malformed(data):
    with pytest.raises(Malformed):
        read_embeddings({"data": data}, 1)


async def test_their_errors_are_those_of_chats(fake, llm, pauses):
    fake.script(Refuses(503), model(), Refuses(400, "no such model"), Refuses(402))
    assert list(await llm.models()) == ["a/b"]
    assert len(pauses) == 1
    with pytest.raises(ModelRefused, match=r"e: .*no such model"):
        await llm.embed("e", ["a"])
    with pytest.raises(OutOfCredit):
        await llm.embed("e", ["a"])


async def test_openrouters_list_needs_no_key():
    llm = LLM("https://openrouter.ai/api/v1", None)
    assert "Authorization" not in llm.headers()
