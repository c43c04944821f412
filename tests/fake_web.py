"""A server of scripted answers: the built web page under a strict policy, and SSE streams of the tests' choosing."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DIST = Path(__file__).resolve().parent.parent / "runtime" / "server" / "web" / "dist"
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
CSP = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass
class Script:
    """One answer: pieces of text, `pause` seconds after each; prompt progress before them as (done, total) pairs."""

    pieces: list[str] = field(default_factory=lambda: ["Hello", " from", " the", " script."])
    pause: float = 0.0
    progress: list[tuple[int, int]] = field(default_factory=list)
    error: tuple[int, str] | None = None
    chunks: list[dict] = field(default_factory=list)  # sent as they are, after the pieces


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeWeb

    def log_message(self, format: str, *args) -> None:
        pass

    def reply(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.server.policy:
            self.send_header("Content-Security-Policy", CSP)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def json(self, value: object, status: int = 200) -> None:
        self.reply(status, "application/json", json.dumps(value).encode())

    def error(self, status: int, message: str) -> None:
        self.json({"error": {"code": status, "message": message, "type": "invalid_request_error"}}, status)

    def allowed(self) -> bool:
        key = self.server.key
        return not key or self.headers.get("Authorization") == f"Bearer {key}"

    def do_GET(self) -> None:
        route = self.path.split("?")[0]
        page = DIST / ("index.html" if route == "/" else route.lstrip("/"))
        if page.is_file() and page.parent == DIST:
            self.reply(200, TYPES.get(page.suffix, "text/plain"), page.read_bytes())
        elif route == "/health":
            self.json({"status": "ok"}) if not self.server.loading else self.error(503, "Loading model")
        elif not self.allowed():
            self.error(401, "Invalid API Key")
        elif route == "/v1/models":
            self.json({"object": "list", "data": [{"id": self.server.model, "object": "model"}]})
        elif route == "/props":
            params = {
                "temperature": 0.8,
                "top_k": 40,
                "top_p": 0.95,
                "min_p": 0.05,
                "n_predict": -1,
                "seed": 4294967295,
            }
            self.json({"default_generation_settings": {"n_ctx": 2048, "params": params}})
        else:
            self.error(404, "not found")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            self.error(401, "Invalid API Key")
            return
        self.server.requests.append((self.path, body))
        script = self.server.scripts.pop(0) if self.server.scripts else Script()
        if script.error:
            self.error(*script.error)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            self.chat(script) if "chat" in self.path else self.completion(script)
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            self.server.dropped += 1
        self.close_connection = True

    def send(self, chunk: dict) -> None:
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        self.wfile.flush()

    def delta(self, delta: dict, finish: str | None = None, **fields) -> None:
        self.send({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **fields})

    def chat(self, script: Script) -> None:
        self.wfile.write(b": ping\n\n")
        for done, total in script.progress:
            progress = {"total": total, "cache": 0, "processed": done, "time_ms": 10}
            self.delta({"role": "assistant", "content": None}, prompt_progress=progress)
            time.sleep(script.pause)
        for number, piece in enumerate(script.pieces, 1):
            self.delta({"content": piece}, timings=timings(number))
            time.sleep(script.pause)
        for chunk in script.chunks:
            self.send(chunk)
        self.delta({}, finish="stop", timings=timings(len(script.pieces)))
        self.send({"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": len(script.pieces)}})

    def completion(self, script: Script) -> None:
        for number, piece in enumerate(script.pieces, 1):
            top = [{"token": piece, "logprob": -0.1 * number}, {"token": " other", "logprob": -2.5}]
            logprobs = {"content": [{"token": piece, "logprob": -0.1 * number, "top_logprobs": top}]}
            self.send({"choices": [{"index": 0, "text": piece, "logprobs": logprobs}], "timings": timings(number)})
            time.sleep(script.pause)
        for chunk in script.chunks:
            self.send(chunk)


def timings(tokens: int) -> dict:
    return {"cache_n": 10, "prompt_n": 20, "prompt_ms": 250.0, "predicted_n": tokens, "predicted_per_second": 41.25}


class FakeWeb(ThreadingHTTPServer):
    """`scripts` are used up one a request; `requests` holds what was asked; `dropped` counts clients that left."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scripts: list[Script] = []
        self.requests: list[tuple[str, dict]] = []
        self.dropped = 0
        self.key = ""
        self.loading = False
        self.policy = True
        self.model = "scripted-model"
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> FakeWeb:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self.server_close()
