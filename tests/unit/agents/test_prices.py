from __future__ import annotations

from decimal import Decimal

import pytest

from oxherd.agents.chat import Request
from oxherd.agents.prices import FRESH, PAUSE, STALE, Prices
from oxherd.agents.records import read_models
from oxherd.errors import RetryLater


def priced(**pricing) -> dict:
    return {"id": pricing.pop("id", "m"), "context_length": pricing.pop("context", 100_000), "pricing": pricing}


def offered(*entries: dict):
    return read_models({"data": list(entries)})


def asking(text: object = "hi", **changes) -> Request:
    given = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 1000} | changes
    return Request(**given)


class Service:
    """A price list that can be away, and the time."""

    def __init__(self, *entries: dict) -> None:
        self.now = 0.0
        self.asked = 0
        self.away = False
        self.entries = entries

    def prices(self) -> Prices:
        return Prices(self.fetch, time=lambda: self.now)

    async def fetch(self):
        self.asked += 1
        if self.away:
            raise RetryLater(30, "away")
        return offered(*self.entries)


async def test_prices_are_decimal_strings_per_token_and_kept_to_the_digit():
    prices = Service(priced(prompt="0.00000025", completion="0.000002")).prices()
    model = await prices.of("m")
    assert (model.input_price, model.output_price) == (Decimal("0.00000025"), Decimal("0.000002"))


async def test_a_price_of_nothing_is_nothing():
    assert await Service(priced(prompt="0", completion="0")).prices().ceiling(asking()) == 0


@pytest.mark.parametrize(
    "entry",
    [
        priced(prompt="-1", completion="-1"), priced(prompt="0.1"), priced(prompt="soon", completion="0.1"),
        priced(id="another", prompt="0.1", completion="0.1"),
    ],
    ids=["below zero", "half", "no number", "not on the list"],
)  # fmt: skip
async def test_an_unknown_price_is_none_and_never_0(entry):
    assert await Service(entry).prices().ceiling(asking()) is None


async def test_a_fallback_s_unknown_price_makes_the_whole_call_s_unknown():
    prices = Service(priced(prompt="0.1", completion="0.1"), priced(id="n", prompt="-1", completion="-1")).prices()
    assert await prices.ceiling(asking(models=["n"])) is None


async def test_the_dearest_of_model_and_fallbacks_counts():
    prices = Service(priced(prompt="0", completion="0.001"), priced(id="n", prompt="0", completion="0.002")).prices()
    assert await prices.ceiling(asking(models=["n"])) == 2


async def test_the_ceiling_counts_a_token_for_each_byte_and_the_whole_output():
    prices = Service(priced(prompt="1", completion="0")).prices()
    short, long = [await prices.ceiling(asking(text)) for text in ("é" * 10, "é" * 20)]
    assert long - short == 20
    assert short > 1000  # what providers add
    prices = Service(priced(prompt="0", completion="2", internal_reasoning="3", request="5")).prices()
    assert await prices.ceiling(asking()) == 3 * 1000 + 5


async def test_the_ceiling_of_an_image_is_the_model_s_context():
    image = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "https://x"}}]
    prices = Service(priced(prompt="1", completion="0", image="7", context=500)).prices()
    assert await prices.ceiling(asking(image)) == 500 + 7
    assert await Service(priced(prompt="1", completion="0", context=None)).prices().ceiling(asking(image)) is None


async def test_a_list_is_kept_for_an_hour():
    service = Service(priced(prompt="1", completion="1"))
    prices = service.prices()
    await prices.of("m")
    service.now = FRESH
    await prices.of("m")
    assert (service.asked, prices.age) == (1, FRESH)
    service.now += 1
    await prices.of("m")
    assert (service.asked, prices.age) == (2, 0)


async def test_an_old_list_will_do_for_a_day_while_no_newer_one_can_be_had():
    service = Service(priced(prompt="1", completion="1"))
    prices = service.prices()
    await prices.of("m")
    service.away, service.now = True, FRESH + 1
    assert await prices.of("m")
    assert await prices.of("m")
    assert service.asked == 2, "not asked again at once"
    service.now = STALE + PAUSE + 1
    with pytest.raises(RetryLater):
        await prices.of("m")


async def test_without_any_list_the_call_waits_for_one():
    service = Service()
    service.away = True
    with pytest.raises(RetryLater):
        await service.prices().ceiling(asking())
