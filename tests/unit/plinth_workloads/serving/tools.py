"""Functions that a chat may call, and a chat template that knows them."""

from typing import Any


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    """A function; `parameters` are its JSON schema."""
    return {"type": "function", "function": {"name": name, **({"parameters": parameters} if parameters else {})}}


TOOLS = [
    tool(
        "weather",
        type="object",
        properties={"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        required=["city", "days"],
        additionalProperties=False,
        **{"$defs": {"city": {"enum": ["Rome", "Oslo"]}}},
    ),
    tool("time"),
]

TOOL_TEMPLATE = (
    "{% if tools %}{% for tool in tools %}[{{ tool.function.name }}]{% endfor %}{% endif %}"
    "{% for message in messages %}{{ message.role }}"
    "{% if message.name %} {{ message.name }}{% endif %}: {{ message.content }}"
    "{% for call in message.tool_calls or [] %}"
    "<{{ call.function.name }} {{ call.function.arguments.items() | list }}>{% endfor %};{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
