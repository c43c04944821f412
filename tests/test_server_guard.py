"""Who may ask what: Host, Origin, keys, and requests that are too large or too slow."""

from __future__ import annotations

import json
import socket
import time

import pytest
from layerlift.runtime.server.guard import MAX_BODY, Policy, is_loopback
from layerlift.runtime.server.routes import PAGE, ROUTES
from serving import serving

LOCAL = Policy.make("127.0.0.1", ())
OPEN = Policy.make("0.0.0.0", ["k"], ["llm.example"])


@pytest.mark.parametrize(
    ("policy", "host", "known"),
    [
        *((LOCAL, h, True) for h in ("localhost", "localhost:8080", "127.0.0.1:1", "[::1]", "[::1]:8080", "LOCALHOST")),
        *((LOCAL, h, False) for h in ("", "evil.com", "localhost.evil.com", "evil.com:8080", "127.0.0.1.nip.io")),
        *((LOCAL, h, False) for h in ("10.0.0.1", "[::2]", "localhost:80:80", "localhost:x", "[::1", "a@localhost")),
        *((OPEN, h, True) for h in ("localhost", "10.0.0.1:8080", "[fe80::1]", "llm.example", "llm.example:443")),
        *((OPEN, h, False) for h in ("", "evil.com", "10.0.0.1.nip.io", "llm.example.evil.com")),
    ],
)
def test_a_server_knows_its_names(policy, host, known):
    assert policy.knows_host(host) is known


@pytest.mark.parametrize(
    ("origin", "host", "known"),
    [
        ("http://localhost:8080", "localhost:8080", True),
        ("https://localhost:8080", "localhost:8080", True),
        ("http://localhost:8081", "localhost:8080", False),
        ("http://127.0.0.1:8080", "localhost:8080", False),
        ("http://evil.com", "localhost:8080", False),
        ("http://evil.com@localhost:8080", "localhost:8080", False),
        ("null", "localhost:8080", False),
        ("", "localhost:8080", False),
        ("file://", "localhost:8080", False),
        ("http://[", "localhost:8080", False),
        ("https://app.example", "localhost:8080", True),
    ],
)
def test_only_its_own_pages_and_those_named_may_ask(origin, host, known):
    policy = Policy.make("127.0.0.1", (), origins=["https://app.example/"])
    assert policy.knows_origin(origin, host) is known


def test_which_addresses_are_this_machine():
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.com", "")))


@pytest.fixture(scope="module")
def server(tiny):
    policy = Policy.make("127.0.0.1", ["secret", "other"], origins=["https://app.example"])
    with serving(tiny("F32"), policy=policy, deadlines=(0.4, 0.4)) as running:
        yield running


@pytest.mark.parametrize("entry", [*ROUTES, *PAGE], ids=lambda e: f"{e.method} {e.path}")
def test_every_route_asks_for_a_key_unless_it_is_public(server, entry):
    path = entry.path.replace("{file}", "app.js").replace("{name:path}", "x")

    def status(**headers) -> int:
        return server.client.request(entry.method, path, headers=headers, content=b"{").status_code

    for wrong in ({}, {"Authorization": "Bearer nope"}, {"Authorization": "secret"}, {"x-api-key": "Secret"}):
        assert (status(**wrong) == 401) is not entry.public, wrong
    for right in ({"Authorization": "Bearer secret"}, {"Authorization": "bearer other"}, {"x-api-key": "secret"}):
        assert status(**right) != 401


@pytest.mark.parametrize("entry", [*ROUTES, *PAGE], ids=lambda e: f"{e.method} {e.path}")
def test_every_route_refuses_foreign_hosts_and_origins(server, entry):
    path = entry.path.replace("{file}", "app.js").replace("{name:path}", "x")
    for headers in ({"Host": "evil.com"}, {"Origin": "http://evil.com"}, {"Origin": "null"}):
        answer = server.client.request(entry.method, path, headers={**headers, "x-api-key": "secret"})
        assert answer.status_code == 403, headers
        assert "access-control-allow-origin" not in answer.headers


def test_a_page_that_was_named_may_read_the_answers(server):
    headers = {"Origin": "https://app.example", "x-api-key": "secret"}
    answer = server.client.get("/v1/models", headers=headers)
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    asked = server.client.options("/v1/models", headers={"Origin": "https://app.example"})
    assert asked.status_code == 204
    assert "authorization" in asked.headers["access-control-allow-headers"]
    assert {entry.method for entry in ROUTES} <= set(asked.headers["access-control-allow-methods"].split(", "))


def test_the_page_names_what_it_may_load(server):
    answer = server.client.get("/")
    assert answer.status_code == 200
    assert "script-src 'self'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path", ["/../pyproject.toml", "/%2e%2e%2fpage.py", "/..%5cpage.py", "/web/src/app.jsx", "/%00"]
)
def test_no_path_leads_to_other_files(server, path):
    answer = server.client.get(path, headers={"x-api-key": "secret"})
    assert answer.status_code == 404


def nested(levels: int) -> bytes:
    return b'{"content": "[[[\\"{{", "x": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


@pytest.mark.parametrize(("levels", "status"), [(64, 200), (65, 400), (100_000, 400)])
def test_a_body_may_be_nested_64_levels_deep(server, levels, status):
    answer = server.client.post("/tokenize", content=nested(levels), headers={"x-api-key": "secret"})
    assert answer.status_code == status
    if status == 400:
        assert "64 levels" in answer.json()["error"]["message"]


def test_brackets_in_texts_are_no_nesting(server):
    content = json.dumps({"content": "[{" * 1000 + '"\\' * 10})
    answer = server.client.post("/tokenize", content=content, headers={"x-api-key": "secret"})
    assert answer.status_code == 200


def talk(port: int, data: bytes, seconds: float = 5.0) -> bytes:
    """What comes back for raw bytes until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(data)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


HEAD = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nx-api-key: secret\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (HEAD + b"Content-Length: -1\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
        (HEAD + b"X: " + b"a" * 70_000 + b"\r\n\r\n", b"400"),
        (HEAD + b"Host: evil.com\r\nConnection: close\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % (MAX_BODY + 1), b"413"),
        (b"POST /tokenize HTTP/1.1\r\nx-api-key: secret\r\nConnection: close\r\n\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
    ],
    ids=["negative length", "two lengths", "long header", "two hosts", "large body", "no host", "nonsense"],
)
def test_requests_that_are_no_http_or_too_large_are_refused(server, data, status):
    assert talk(server.port, data).split(b" ")[1] == status


def test_a_body_that_grows_without_a_length_is_cut_off(server):
    chunk = b"%x\r\n%s\r\n" % (1 << 20, b" " * (1 << 20))
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range((MAX_BODY >> 20) + 2):
                connection.sendall(chunk)
        except OSError:
            pass  # it has closed already
        try:
            assert b" 413 " in connection.recv(100)
        except ConnectionResetError:
            pass


@pytest.mark.parametrize("data", [b"", HEAD, HEAD + b"Content-Length: 10\r\n\r\n{"], ids=["nothing", "header", "body"])
def test_a_request_that_does_not_arrive_ends_its_connection(server, data):
    started = time.monotonic()
    talk(server.port, data)
    assert time.monotonic() - started < 4
