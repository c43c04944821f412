"""The table of routes: path, method, handler, what it answers with, and whether it is open to those without a key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, get_type_hints

from starlette.responses import Response

from . import (
    about,
    anthropic,
    embeddings,
    native,
    ollama,
    openai_chat,
    openai_completions,
    openapi,
    page,
    responses,
    texts,
)

Handler = Callable[..., Awaitable[Response]]  # of the request and, where there is one, its body


JSON = ("application/json",)
EVENTS = (*JSON, "text/event-stream")
LINES = (*JSON, "application/x-ndjson")
TEXT = ("text/plain",)


class Entry(NamedTuple):
    path: str
    method: str
    handler: Handler
    media: tuple[str, ...] = JSON
    public: bool = False

    @property
    def body(self) -> type | None:
        """The struct that the handler takes the body as."""
        return get_type_hints(self.handler).get("body")


ROUTES: tuple[Entry, ...] = (
    Entry("/health", "GET", about.health, public=True),
    Entry("/v1/health", "GET", about.health, public=True),
    Entry("/openapi.json", "GET", openapi.openapi),
    Entry("/v1/models", "GET", about.models),
    Entry("/models", "GET", about.models),
    Entry("/v1/models/{name:path}", "GET", about.model),
    Entry("/props", "GET", about.props),
    Entry("/slots", "GET", about.slots),
    Entry("/metrics", "GET", about.metrics, TEXT),
    Entry("/v1/chat/completions", "POST", openai_chat.chat_completions, EVENTS),
    Entry("/chat/completions", "POST", openai_chat.chat_completions, EVENTS),
    Entry("/v1/completions", "POST", openai_completions.completions, EVENTS),
    Entry("/completions", "POST", native.completion, EVENTS),
    Entry("/completion", "POST", native.completion, EVENTS),
    Entry("/v1/responses", "POST", responses.responses, EVENTS),
    Entry("/v1/responses/input_tokens", "POST", responses.input_tokens),
    Entry("/v1/responses/{id}", "GET", responses.response),
    Entry("/v1/responses/{id}", "DELETE", responses.forget),
    Entry("/v1/embeddings", "POST", embeddings.embeddings),
    Entry("/embeddings", "POST", embeddings.embedding),
    Entry("/embedding", "POST", embeddings.embedding),
    Entry("/tokenize", "POST", texts.tokenize),
    Entry("/detokenize", "POST", texts.detokenize),
    Entry("/apply-template", "POST", texts.apply_template),
    Entry("/tokenizer_info", "GET", texts.tokenizer_info),
    Entry("/v1/messages", "POST", anthropic.messages, EVENTS),
    Entry("/v1/messages/count_tokens", "POST", anthropic.count_tokens),
    Entry("/api/chat", "POST", ollama.chat, LINES),
    Entry("/api/generate", "POST", ollama.generate, LINES),
    Entry("/api/embed", "POST", ollama.embed),
    Entry("/api/embeddings", "POST", ollama.embedding),
    Entry("/api/tags", "GET", ollama.tags),
    Entry("/api/ps", "GET", ollama.running),
    Entry("/api/show", "POST", ollama.show),
    Entry("/api/version", "GET", ollama.version),
)

# The web page's files lie beside `/`; their names cannot be those of a route above.
PAGE: tuple[Entry, ...] = (
    Entry("/", "GET", page.page, public=True),
    Entry("/{file}", "GET", page.page, public=True),
)
