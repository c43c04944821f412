"""The OpenAPI document says what the routes are, and no request that it allows or forbids ends in a status of 5xx."""

from __future__ import annotations

import os
import re
from itertools import pairwise

import msgspec
import pytest
from layerlift.runtime.server import openapi
from layerlift.runtime.server.guard import Policy
from layerlift.runtime.server.routes import ROUTES
from serving import serving

CASES = int(os.environ.get("LAYERLIFT_FUZZ_CASES", "200"))  # in all
LABELS = [f"{entry.method} {re.sub(r':path}', '}', entry.path)}" for entry in ROUTES]
FUZZED = [(label, "positive") for label in LABELS if label.startswith("POST ") or "{" in label]
FUZZED += [(label, "negative") for label, _ in FUZZED if label.startswith("POST ")]  # bodies that are not as described
# What a body needs beyond what its description requires, so that what is generated comes as far as the model.
NEEDED = {path: {"input": "Hi"} for path in ("/v1/responses", "/v1/responses/input_tokens", "/api/embed")}
NEEDED |= {path: {"input": [1, 2]} for path in ("/v1/embeddings", "/embeddings", "/embedding")}
NEEDED |= {"/tokenize": {"content": "Hi"}, "/api/embeddings": {"prompt": "Hi"}}
DOCUMENT = openapi.document(ROUTES)


@pytest.fixture(scope="module")
def server(tiny):
    with serving(tiny("F32"), alias="tiny", context=256, max_tokens=2, policy=Policy.make("127.0.0.1", ())) as running:
        yield running


def operation(label: str) -> dict:
    method, path = label.split()
    return DOCUMENT["paths"][path][method.lower()]


def references(value) -> set[str]:
    if isinstance(value, dict):
        return {value["$ref"]} if "$ref" in value else set().union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_the_document_has_the_routes_and_no_others(server):
    described = [f"{method.upper()} {path}" for path, methods in DOCUMENT["paths"].items() for method in methods]
    assert sorted(described) == sorted(LABELS)
    assert server.get("/openapi.json") == DOCUMENT
    identities = sorted(operation(label)["operationId"] for label in LABELS)
    assert all(a != b for a, b in pairwise(identities))


@pytest.mark.parametrize("entry", [e for e in ROUTES if e.body], ids=lambda e: e.path)
def test_a_body_is_described_as_it_is_read(entry):
    schema = DOCUMENT["paths"][entry.path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    described = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    assert set(described["properties"]) == {field.encode_name for field in msgspec.structs.fields(entry.body)}


def test_every_handler_of_a_post_takes_a_body_and_is_summed_up():
    assert [entry.path for entry in ROUTES if (entry.body is None) == (entry.method == "POST")] == []
    assert [label for label in LABELS if not operation(label)["summary"]] == []


def test_references_are_found():
    assert references(DOCUMENT) == {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}


def test_answers_have_the_media_type_that_is_described(server):
    for entry in ROUTES:
        if entry.method == "GET" and "{" not in entry.path:
            kind = server.client.get(entry.path).headers["content-type"].partition(";")[0]
            assert kind in DOCUMENT["paths"][entry.path]["get"]["responses"]["200"]["content"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("label", "mode"), FUZZED)
def test_no_request_ends_in_5xx(server, label, mode):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed (pip install '.[test]')")
    from hypothesis import HealthCheck, given, settings

    method, path = label.split()
    kind = schemathesis.GenerationMode(mode)
    cases = schemathesis.openapi.from_dict(DOCUMENT)[path][method].as_strategy(generation_mode=kind)

    @given(case=cases)
    @settings(
        max_examples=max(CASES // len(FUZZED), 1),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def check(case):
        if mode == "positive" and isinstance(case.body, dict):
            case.body = {**NEEDED.get(path, {}), **case.body, "context_shift": False}  # true: answers without end
        answer = case.call(base_url=server.url, timeout=60)
        assert answer.status_code < 500, (case.as_curl_command(), answer.text)

    check()
