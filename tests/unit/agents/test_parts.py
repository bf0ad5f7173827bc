from __future__ import annotations

from fakes.openrouter import says
from oxherd.agents import parts
from oxherd.agents.chat import Request


async def test_openrouter_takes_images_files_and_cache_marks(fake, llm):
    content = [
        parts.text("a long book", cache=True),
        parts.image("https://example.com/ox.jpg", detail="low"),
        parts.image(b"\x89PNG"),
        parts.file("bill.pdf", b"%PDF"),
        parts.file("bill.pdf", "https://example.com/bill.pdf"),
        parts.text("What is it?"),
    ]
    fake.script(says("An ox"))
    await llm.chat(Request("m", [{"role": "user", "content": content}], 100))
    sent = fake.requests[0]["messages"][0]["content"]
    assert sent[0] == {"type": "text", "text": "a long book", "cache_control": {"type": "ephemeral"}}
    assert sent[1]["image_url"] == {"url": "https://example.com/ox.jpg", "detail": "low"}
    assert sent[2]["image_url"] == {"url": "data:image/png;base64,iVBORw=="}
    assert sent[3]["file"] == {"filename": "bill.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}
