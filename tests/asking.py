"""What the tests of real clients ask the default model."""

from __future__ import annotations

CAPITAL = "What is the capital of France? Answer in one sentence."
QUESTION = [{"role": "user", "content": CAPITAL}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}


def city_type() -> type:
    """A pydantic model of SCHEMA; pydantic comes with the clients."""
    import pydantic

    class City(pydantic.BaseModel):
        """A city, and whether it is big."""

        city: str = pydantic.Field(max_length=20)
        big: bool

    return City
