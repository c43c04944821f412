"""Chat templates: the same text as jinja2 writes, kind to what clients send, and no harm from hostile ones."""

# ruff: noqa: E501  (templates come with long lines)

from __future__ import annotations

import copy
import json
import subprocess
import sys
import threading
from datetime import datetime

import ggufs
import pytest
from layerlift.runtime.errors import TemplateError, UserError
from layerlift.runtime.gguf import open_gguf
from layerlift.runtime.template import ChatTemplate
from layerlift.runtime.tokenizer import Tokenizer

NOW = datetime(2025, 3, 4, 5, 6)
USER = [{"role": "user", "content": "Hello"}]
SYSTEM = [{"role": "system", "content": "Be brief."}, *USER]
LONG = [*SYSTEM, {"role": "assistant", "content": " Hi!\n"}, {"role": "user", "content": "How's <b>life</b>, ñandú?"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'The weather\'s "feel" & <more>',
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Malmö", "days": 2}}}
CALLED = [
    *USER,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "sun"},
]

STYLES = {
    "chatml": """{% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system
You help.<|im_end|>
' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    "llama3 with dates and tools": """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- if tools is not none and messages | length != 0 %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}{{- raise_exception("one call at a time") }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}{{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}""",
    "qwen with tools": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
        and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '\\n<call>{"name": "' ~ call.name ~ '", "arguments": ' ~ (call.arguments | tojson) ~ '}</call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool>\\n' + message.content + '\\n</tool>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}""",
    "phi": """{% for message in messages %}{% if message['role'] in ['system', 'user', 'tool'] %}
{{'<|' ~ message['role'] ~ '|>' + '\n' + message['content'] + '<|end|>' + '\n'}}{% else %}
{{'<|assistant|>' + '\n' + message['content'] + '<|end|>' + '\n'}}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}""",
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "generation blocks": """{%- for m in messages -%}{%- if m.role == 'assistant' -%}
{% generation %}{{ m.content }}{% endgeneration %}{%- else -%}[{{ m.content }}]{%- endif -%}{%- endfor -%}""",
    "macros and loop controls": """{%- macro line(role, text='?') -%}{{ role | upper }}: {{ text }};{% endmacro -%}
{%- for m in messages -%}{%- if m.role == 'tool' -%}{%- continue -%}{%- endif -%}{{ line(m.role, text=m.content) }}
{%- if loop.index > 2 -%}{%- break -%}{%- endif -%}{%- endfor -%}""",
    "values printed": """{{ messages[0] }} {{ true }} {{ none }} {{ [1, 'a', 1.5] }} {{ tools }} {{ 7 // 2 }} {{ 7 / 2 }}
{{- messages | map(attribute='role') | join(', ') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{- messages[-1].content.split(' ')[0].strip().replace('l', 'L').upper() }} {{ 'x' * 3 ~ 4 }} {{ messages[0].get('nope', 'd') }}
{{- messages[-1]['content'][::-1] }} {{ messages[0].items() | list }} {{ nope is defined }} {{ nope }}{{ 'é' | tojson }}""",
}  # fmt: skip

ALTERNATING = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}
{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate') }}{% endif %}{% set role = 'model' if message.role == 'assistant' else message.role %}
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"""
STYLES["gemma"] = ALTERNATING
STYLES["mistral"] = (
    ALTERNATING.replace("<start_of_turn>", "[INST] ").replace("<end_of_turn>\\n", " [/INST]") + "{{ eos_token }}"
)


@pytest.fixture(scope="module")
def jinja():
    """jinja2 as the transformers library sets it up: the reference for what templates mean."""
    from jinja2 import TemplateError as JinjaError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  (jinja2's interface)

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message):
        raise JinjaError(message)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    env.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
    env.globals |= {"raise_exception": raise_exception, "strftime_now": NOW.strftime}

    def render(source, messages, **names):
        names = {"add_generation_prompt": True, "tools": None, "bos_token": "<s>", "eos_token": "</s>", **names}
        return env.from_string(source).render(messages=copy.deepcopy(messages), **names)

    return render


def render(source, messages=USER, **options):
    return ChatTemplate.from_source(source, bos="<s>", eos="</s>").render(messages, now=NOW, **options)


# -- the same text as the reference --


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("messages", "options"),
    [
        (USER, {}),
        (LONG[1:], {}),
        (LONG, {}),
        (LONG, {"add_generation_prompt": False}),
        (CALLED, {"tools": TOOLS}),
        (USER, {"enable_thinking": False, "date_string": "1 May 2030"}),
    ],
    ids=["user", "turns", "system", "closed", "tools", "variables"],
)
def test_text_equals_what_jinja2_writes(jinja, style, messages, options):
    from jinja2 import TemplateError as JinjaError

    try:
        expected = jinja(STYLES[style], messages, **options)
    except JinjaError as error:
        if messages[0]["role"] == "system":
            pytest.skip("the template refuses a system message; that it is merged has its own test")
        with pytest.raises(TemplateError, match=str(error)):
            render(STYLES[style], messages, **options)
    else:
        assert render(STYLES[style], messages, **options) == expected


def test_builtins_equal_what_jinja2_writes(jinja):
    for name in ("chatml", "llama2", "llama3"):
        template = ChatTemplate.builtin(name, bos="<s>", eos="</s>")
        assert template.is_fallback
        assert template.render(LONG) == jinja(template.source, LONG)


def test_builtin_texts():
    def write(name):
        return ChatTemplate.builtin(name, bos="<s>", eos="</s>").render(SYSTEM)

    assert write("chatml") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert write("llama2") == "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello [/INST]"
    assert write("llama3") == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    with pytest.raises(UserError, match="chatml, llama2, llama3"):
        ChatTemplate.builtin("nope")


def test_the_default_models_own_template(default_model, jinja):
    with open_gguf(default_model) as g:
        template = ChatTemplate.from_gguf(g, Tokenizer.from_gguf(g))
    assert (template.name, template.is_fallback) == ("model", False)
    assert template.render(LONG) == jinja(template.source, LONG, bos_token="<|im_start|>", eos_token="<|im_end|>")
    assert template.render(USER).startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")


# -- which template --


@pytest.mark.parametrize(
    ("extra", "keys", "name", "is_fallback"),
    [
        ([], {"tokenizer.chat_template": "{{ messages[0].content }}"}, "model", False),
        ([], {"tokenizer.chat_template": " \n"}, "chatml", True),
        ([], {"tokenizer.chat_template": 7}, "chatml", True),
        ([], {}, "chatml", True),
        (["<|im_start|>", "<|im_end|>"], {}, "chatml", True),
        (["<|start_header_id|>", "<|eot_id|>"], {}, "llama3", True),
        ([], {"general.name": "Llama-2-7B-Chat"}, "llama2", True),
        ([], {"general.name": "Mistral 7B Instruct v0.1"}, "llama2", True),
        (["<|im_start|>"], {"general.name": "Mistral 7B Instruct"}, "chatml", True),
    ],
)
def test_the_files_template_or_the_builtin_that_fits(tmp_path, extra, keys, name, is_fallback):
    tokens = ["<unk>", "<s>", "</s>", "a", *extra]
    keys = keys | {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": [2, 3, 3, 1] + [3] * len(extra),
    }
    with open_gguf(ggufs.write(tmp_path / "v.gguf", {}, keys)) as g:
        template = ChatTemplate.from_gguf(g, Tokenizer.from_gguf(g))
    assert (template.name, template.is_fallback) == (name, is_fallback)
    assert "Hello" in template.render(USER)


def test_a_second_template_serves_conversations_with_tools():
    template = ChatTemplate("plain", name="model", is_fallback=False, tool_source="tools: {{ tools | length }}")
    assert template.render(USER) == "plain"
    assert template.render(USER, tools=TOOLS) == "tools: 1"


# -- kind to what clients send --

PARTS = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
ONLY_TEXT = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content }}{% endfor %}"
ONLY_PARTS = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"


def test_parts_are_joined_where_the_template_takes_text():
    assert render(ONLY_TEXT, PARTS) == "user: one\ntwo"
    assert render("{{ messages[0].content + '!' }}", PARTS) == "one\ntwo!"


def test_parts_stay_where_the_template_reads_them():
    both = "{% for p in messages[0].content %}{{ p.text if p is mapping else p }}.{% endfor %}"
    assert render(both, PARTS) == "one.two."
    assert render(ONLY_PARTS, PARTS) == "onetwo"


def test_text_becomes_a_part_where_the_template_reads_only_parts():
    assert render(ONLY_PARTS, USER) == "Hello"


def test_an_image_is_refused_by_name():
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    with pytest.raises(UserError, match="'image_url'"):
        render(ONLY_TEXT, image)


def test_a_refused_system_message_goes_into_the_first_user_message():
    text = render(STYLES["gemma"], SYSTEM)
    assert "<start_of_turn>user\nBe brief.\n\nHello<end_of_turn>" in text


def test_a_dropped_system_message_goes_into_the_first_user_message():
    source = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    assert render(source, SYSTEM) == "Be brief.\n\nHello"


def test_tool_arguments_may_be_json_text():
    source = "{{ messages[-1].tool_calls[0].function.arguments | tojson }}"
    call = {"function": {"name": "f", "arguments": '{"city": "Malmö"}'}}
    messages = [*USER, {"role": "assistant", "tool_calls": [call]}]
    assert render(source, messages) == '{"city": "Malmö"}'
    assert render("{{ 'x' + messages[-1].tool_calls[0].function.arguments }}", messages) == 'x{"city": "Malmö"}'


def test_templates_that_ask_whether_none_is_iterable():
    assert render("{% if tools is iterable and tools | length > 0 %}tools{% endif %}.") == "."


def test_the_callers_messages_stay_as_they_are():
    messages = copy.deepcopy(CALLED)
    render("{{ messages.append(1) }}{{ messages[0].update({'content': 'x'}) }}", messages)
    assert messages == CALLED


def test_dates_come_from_now():
    assert render("{{ strftime_now('%Y-%m-%d %-d') }}") == "2025-03-04 4"
    assert ChatTemplate.from_source("{{ strftime_now('%Y') }}").render(USER) == str(datetime.now().year)


def test_lone_surrogates_do_not_break_a_conversation():
    assert render("{{ messages[0].content }}", [{"role": "user", "content": "a\ud800b"}]) == "a\ufffdb"


def test_a_long_conversation_is_no_bomb():
    messages = [{"role": ("user", "assistant")[i % 2], "content": f"{i} " + "word " * 200} for i in range(1001)]
    text = render(STYLES["chatml"], messages)
    assert len(text) > 1_000_000
    assert "1000 word" in text


def test_threads_share_the_process():
    results = {}

    def work(i):
        results[i] = [render("{{ messages[0].content }}", [{"role": "user", "content": f"{i}-{j}"}]) for j in range(20)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: [f"{i}-{j}" for j in range(20)] for i in range(4)}


@pytest.mark.parametrize("name", ["chat_template", "bos_token", "eos_token", "_x", "a-b", "a b", "1a", ""])
def test_names_that_no_request_may_set(name):
    with pytest.raises(UserError, match="cannot be set"):
        ChatTemplate.from_source("x").render(USER, **{name: "x"})


@pytest.mark.parametrize(
    "messages",
    [["hi"], [{"content": "hi"}], [{"role": 1, "content": "hi"}], [{"role": "user", "content": b"hi"}],
     [{"role": "user", "content": object()}], [{"role": "user", "content": float("nan")}]],
)  # fmt: skip
def test_what_is_no_conversation_is_the_users_mistake(messages):
    with pytest.raises(UserError, match=r"messages\[0\]"):
        render("x", messages)


def test_data_nested_without_end_is_the_users_mistake():
    knot: list = []
    knot.append(knot)
    with pytest.raises(UserError, match="nested"):
        render("x", [{"role": "user", "content": knot}])


# -- no harm from hostile templates --

DAG = "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}"
DOUBLE = "{%% set n = namespace(s='a'*999) %%}{%% for i in range(999) %%}{%% set n.s = n.s %s n.s %%}{%% endfor %%}"
HOSTILE = {
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "much text": "{% for a in range(99999) %}" + "x" * 500 + "{% endfor %}",
    "doubling by +": DOUBLE % "+",
    "doubling by ~": DOUBLE % "~",
    "doubling a list": "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}"
    "{{ n.s | length }}",
    "doubling by reference": DAG + "{{ n.s }}",
    "comparing what was doubled": DAG + "{% set t = [n.s] %}{{ n.s | string | length }}{{ t == [n.s] }}",
    "json of what was doubled": DAG + "{{ n.s | tojson }}",
    "string times number": "{{ 'a' * 10**9 }}",
    "list times number": "{% set x = [1] * 99999 %}{% for i in range(999) %}{% set x = x * 9999 %}{% endfor %}",
    "replace": "{% set s = 'a' * 99999 %}{{ s.replace('a', s) }}",
    "join": "{% set s = 'a' * 99999 %}{{ range(99999) | join(s) }}",
    "endless recursion": "{% macro a() %}{{ a() }}{{ a() }}{% endmacro %}{{ a() }}",
    "format width": "{{ '{:>1000000000}'.format(1) }}",
    "percent width": "{{ '%1000000000d' | format(1) }}",
    "center": "{{ 'a' | center(10**9) }}{{ 'a'.center(10**9) }}",
    "date width": "{{ strftime_now('%1000000000d') }}",
    "json indent": "{{ [1] | tojson(indent=10**9) }}",
    "indent": "{{ 'a\nb' | indent(10**9) }}",
    "range as a list": "{{ range(10**9) | list }}",
    "power": "{{ 10 ** 10 ** 10 }}",
    "deep lists": "{% set n = namespace(s=[]) %}{% for i in range(99999) %}{% set n.s = [n.s] %}{% endfor %}{{ n.s | tojson }}",
    "long chain": "{{ a" + ".a" * 99999 + " }}",
    "long sum": "{{ 1" + "+1" * 99999 + " }}",
    "many nots": "{{ " + "not " * 99999 + "1 }}",
    "many parentheses": "{{ " + "(" * 99999 + ")" * 99999 + " }}",
    "many ifs": "{% if 1 %}" * 20000 + "{% endif %}" * 20000,
    "many elifs": "{% if 0 %}" + "{% elif 0 %}" * 50000 + "{% endif %}",
    "slow steps": "{% set s = 'a' * 999999 %}{% for i in range(99999) %}{% set x = s[::-1] %}{% endfor %}",
    "the messages themselves": "{% for i in range(99) %}{{ messages.extend(messages) }}{% endfor %}",
    "interpreter": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "include": "{% include '/etc/passwd' %}",
    "too long": "{{ 'x' }}" * 200_000,
    "syntax": "{% if %}",
    "no name": "{{ a.b.c }}",
    "its own words": "{{ raise_exception('one\ntwo') }}",
}  # fmt: skip

BOMBS = """
import json, resource, sys, time
from layerlift.runtime.errors import TemplateError
from layerlift.runtime.sandbox import shared
from layerlift.runtime.template import ChatTemplate

def spent():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime

report = {}
for name, source in json.load(sys.stdin).items():
    shared.close()
    before, begin, message = spent(), time.monotonic(), None
    try:
        ChatTemplate.from_source(source).render([{"role": "user", "content": "Hello"}])
    except TemplateError as error:
        message = str(error)
    wall = time.monotonic() - begin
    shared.close()
    report[name] = message, spent() - before, wall
print(json.dumps([report, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]))
"""


@pytest.fixture(scope="module")
def bombs():
    """What each hostile template ended in, with processor seconds and wall seconds; and the peak MiB of memory."""
    pytest.importorskip("resource")
    run = subprocess.run(
        [sys.executable, "-c", BOMBS], input=json.dumps(HOSTILE), capture_output=True, text=True, timeout=110
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_in_one_line_within_a_second(bombs, name):
    message, cpu, wall = bombs[0][name]
    assert message is not None, f"rendered in {cpu:.2f} s"
    assert message.startswith("chat template: ")
    assert "\n" not in message
    assert len(message) < 600
    assert cpu < 1, f"{cpu:.2f} s of processor time"  # what it takes of a machine that does nothing else
    assert wall < 6, f"{wall:.2f} s"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much address space is in use")
def test_hostile_templates_stay_below_100_mib(bombs):
    assert bombs[1] < 100


def test_after_a_hostile_template_the_next_one_works():
    with pytest.raises(TemplateError):
        render(HOSTILE["long chain"])
    assert render("{{ messages[0].content }}") == "Hello"


def test_a_process_that_cannot_start_is_named(monkeypatch):
    from layerlift.runtime.sandbox import Sandbox

    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(TemplateError, match=r"cannot start '/nonexistent/python'"):
        Sandbox().render("x", {}, NOW.isoformat())
