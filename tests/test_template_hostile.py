"""Hostile chat templates end in one line, soon and in little memory, and harm nothing."""

# ruff: noqa: E501  (templates come with long lines)

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from chat_styles import NOW, render
from layerlift.runtime import landlock
from layerlift.runtime.errors import TemplateError
from layerlift.runtime.sandbox import shared

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


OPENS = """
import os, socket, sys
from layerlift.runtime import landlock, template_worker

statm = template_worker.open_statm()
rules = landlock.ruleset()
template_worker.confine([rules])
tries = [
    lambda: open(sys.argv[1]).close(),
    lambda: open(sys.argv[1] + "2", "w").close(),
    lambda: os.listdir("/"),
    lambda: os.execv(sys.executable, [sys.executable]),
    lambda: os.fstat(rules),
]
for attempt in tries:
    try:
        attempt()
        print("done")
    except OSError as error:
        print(type(error).__name__)
print(int(os.pread(statm, 64, 0).split()[0]) > 0)
"""


@pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock")
def test_the_process_that_renders_opens_no_file(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("x")
    run = subprocess.run([sys.executable, "-c", OPENS, str(secret)], capture_output=True, text=True, timeout=60)
    assert run.stdout.split() == [*["PermissionError"] * 4, "OSError", "True"], run.stderr
    assert render("{{ messages[0]['content'] }}") == "Hello"
    worker = shared._process.pid
    (renders,) = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    assert "NoNewPrivs:\t1" in Path(f"/proc/{renders}/status").read_text()
