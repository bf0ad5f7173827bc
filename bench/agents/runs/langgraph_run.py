"""LangGraph: LangChain's agent, which is one of its graphs, with messages streamed. No checkpointer."""

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


async def connect(url, _):
    @tool
    async def look(what: str) -> str:
        """Look something up."""
        return f"{what} is big"

    model = ChatOpenAI(
        model="openai/gpt-5-mini", base_url=url, api_key="none", max_tokens=1000, streaming=True, stream_usage=True,
        max_retries=0,
    )  # fmt: skip
    plain, agent = create_agent(model, []), create_agent(model, [look])

    async def run(said, heard, *, tools):
        text = []
        asked = {"messages": [{"role": "user", "content": said}]}
        async for message, about in (agent if tools else plain).astream(asked, stream_mode="messages"):
            if about["langgraph_node"] == "model" and message.text:
                text.append(message.text)
                heard(message.text)
        return "".join(text)

    return run
