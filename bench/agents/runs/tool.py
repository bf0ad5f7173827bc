"""The tool, and the loop, of those who bring neither."""

import json

TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look something up.",
        "parameters": {"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]},
    },
}


async def converse(ask, said, heard, tools):
    """Ask, use the tool, ask again. `ask(messages, tools, heard)` returns the text, and a call's id and arguments."""
    messages = [{"role": "user", "content": said}]
    while True:
        text, call, arguments = await ask(messages, [TOOL] if tools else [], heard)
        if call is None:
            return text
        function = {"name": "look", "arguments": arguments}
        asked = [{"id": call, "type": "function", "function": function}]
        messages += [
            {"role": "assistant", "content": None, "tool_calls": asked},
            {"role": "tool", "tool_call_id": call, "content": f"{json.loads(arguments)['what']} is big"},
        ]
