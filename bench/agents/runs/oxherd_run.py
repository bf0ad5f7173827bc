"""Oxherd's run loop alone: no queue, no journal, no ledger."""

from oxherd import Context, tool
from oxherd.agents import LLM, Agent
from oxherd.agents.loop import run_agent
from oxherd.job import Job
from oxherd.settings import Secret


class NoJournal:
    def find(self, _):
        return None

    def at(self, _):
        return None

    async def save(self, step): ...


class ListeningLLM(LLM):
    """Tells the bench what comes, as a stream's readers would be told."""

    async def chat(self, request, on_delta=None, **more):
        heard = listeners[request.messages[0]["content"]]

        def both(delta):
            heard(delta.text)
            on_delta(delta)

        return await super().chat(request, both, **more)


listeners = {}


@tool
async def look(what: str) -> str:
    """Look something up."""
    return f"{what} is big"


AGENT = Agent("looker", "openai/gpt-5-mini", tools=[look], max_output_tokens=1000)
PLAIN = Agent("plain", "openai/gpt-5-mini", max_output_tokens=1000)


async def connect(url, _):
    llm = ListeningLLM(url, Secret("none"), openrouter=True)
    count = 0

    async def run(said, heard, *, tools):
        nonlocal count
        count += 1
        said = f"{said} {count}"
        listeners[said] = heard
        ctx = Context(
            Job(id=str(count), name="bench", raw=b"{}", opts={}, token="t"), journal=NoJournal(), wire=None, runner=None
        )
        done = await run_agent(ctx, AGENT if tools else PLAIN, said, llm)
        del listeners[said]
        return done.output

    return run
