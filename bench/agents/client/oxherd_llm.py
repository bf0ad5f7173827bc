"""Oxherd's client with all it does for a run: limits, faults, the tries for the ledger, a listener."""

from oxherd.agents.chat import Request
from oxherd.agents.llm import LLM
from oxherd.settings import Secret


async def connect(url):
    llm = LLM(url, Secret("none"), openrouter=True)
    request = Request("openai/gpt-5-mini", [{"role": "user", "content": "hello"}], max_tokens=1000)
    await llm.session()
    heard = []

    async def keep(tried):
        heard.append(tried.id)

    async def ask():
        heard.clear()
        reply = await llm.chat(request, heard.append, tries=[], on_generation=keep)
        assert reply.usage.cost_usd > 0
        return reply.text

    return ask
