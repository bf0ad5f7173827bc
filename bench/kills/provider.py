"""The provider of the kills: the strict double of OpenRouter, answering a conversation of three turns without end."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from fakes.openrouter import Answer, Body, Cuts, Drops, FakeOpenRouter, Refuses, Streams, calls, chunk, event, says

PACE = 0.015  # seconds between the events of a reply
MODELS = {
    "data": [
        {"id": f"m{number}", "context_length": 9000, "pricing": {"prompt": "0.000001", "completion": "0.000002"}}
        for number in range(4)
    ]
}
TURNS = (
    calls(("look", {"what": "the ox of the neighbour"}), ("look", {"what": "its barn"})),
    calls(("look", {"what": "what the ox eats on a Sunday"}), content="I look up what is missing."),
    says("The ox is strong, the barn is big, and on Sundays it eats hay as on any other day."),
)
Place = tuple[str, int]  # a job's name and the turn of its conversation: one step


class Provider(FakeOpenRouter):
    """Answers each turn of each job; of one call in eight something goes wrong, by the seed.

    Parameters:
        seed: of what goes wrong, and of the prices: the same for the same try of the same step.
        on_again: told of each try of a step that was billed before.

    Attributes:
        billed: the generations of each step, in order.
        broken: the generations that it broke off itself.
        mishaps: what it did to whom it answered.
    """

    def __init__(self, seed: int, on_again: Callable[[Place], None]) -> None:
        super().__init__(self._reply, models=MODELS, pace=PACE)
        self._seed = seed
        self._on_again = on_again
        self._tries: Counter[Place] = Counter()
        self.billed: defaultdict[Place, list[str]] = defaultdict(list)
        self.broken: set[str] = set()
        self.mishaps: Counter[str] = Counter()

    def _reply(self, body: Body) -> Answer:
        place = place_of(body["messages"])
        self._tries[place] += 1
        tried, following = self._tries[place], (place[0], place[1] + 1)
        if self._tries[following]:
            self.faults.append(f"{place}: asked again after the run had gone on to its next turn")
        chance = random.Random(f"{self._seed} {place} {tried}")
        if self.billed[place]:
            self._on_again(place)
        usage = {"prompt_tokens": chance.randrange(10, 900), "completion_tokens": 20, "total_tokens": 0}
        usage["total_tokens"] = usage["prompt_tokens"] + 20
        answer = {**TURNS[place[1] - 1], "usage": {**usage, "cost": chance.randrange(1, 10**6) / 1e9}}
        name, reply = self._mishap(answer, chance) if tried < 4 else ("", answer)
        if name:
            self.mishaps[name] += 1
        if not isinstance(reply, Refuses | Drops):
            self.billed[place].append(self._id())
            if reply is not answer:
                self.broken.add(self._id())
        return reply

    def _mishap(self, answer: Body, chance: random.Random) -> tuple[str, Answer]:
        dice = chance.random()
        if dice < 0.02:
            return "429", Refuses(429, headers={"Retry-After": "0.1"})
        if dice < 0.04:
            return "502", Refuses(502)
        if dice < 0.05:
            return "connection dropped", Drops()
        if dice < 0.07:
            error = {"error": {"code": 502, "message": "the provider broke down"}}
            return "error in the stream", Streams(chunk({"content": "The"}), PACE, event(error))
        if dice < 0.12:
            return "stream cut", Cuts(answer, chance.uniform(0.02, 0.98))
        return "", answer


def place_of(messages: list[dict[str, Any]]) -> Place:
    said = next(message["content"] for message in messages if message["role"] == "user")
    job = re.fullmatch(r"Please see to (kill-\d+)\.", said)
    assert job is not None, said
    return job[1], 1 + sum(message["role"] == "assistant" for message in messages)
