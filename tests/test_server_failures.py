"""Errors name the field of the request that they are about."""

from __future__ import annotations

import pytest
from layerlift.runtime.errors import ContextFull, GrammarError, UserError
from layerlift.runtime.sampler import Sampling
from layerlift.runtime.server import failures


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("'messages[0].content' is missing", "messages[0].content"),
        ("'response_format.type' is 'xml', must be text, json_object or json_schema", "response_format.type"),
        ("top_p is 7, must be between 0 and 1", "top_p"),
        ("temperature must be a number, not 'hot'", "temperature"),
        ("logit_bias: token 999 is outside the vocabulary of 300", "logit_bias"),
        ("grammar: expected a rule", "grammar"),
        ("the prompt is empty", None),
        ("nothing is known of this", None),
    ],
)
def test_the_field_is_read_from_the_beginning_of_a_message(message, field):
    kind = GrammarError if field == "grammar" else UserError
    status, body = failures.describe(kind(message))
    assert status == 400
    assert failures.openai_shape(body)["error"]["param"] == field


def test_every_sampling_setting_out_of_range_is_named():
    for name, value in {"top_p": 2.0, "min_p": -1.0, "repeat_penalty": 0.0, "mirostat": 7, "min_keep": -1}.items():
        with pytest.raises(UserError) as caught:
            Sampling(**{name: value})
        assert failures.field_of(str(caught.value)) == name


def test_a_full_context_names_counts_and_no_field():
    error = failures.openai_shape(failures.describe(ContextFull(600, 1, 512))[1])["error"]
    assert (error["n_prompt_tokens"], error["n_ctx"], error["param"]) == (600, 512, None)


def test_a_bug_tells_nothing_of_the_inside(caplog):
    status, body = failures.describe(KeyError("secret"))
    assert (status, body["message"]) == (500, "internal error")
    assert "secret" in caplog.text  # the log has it
