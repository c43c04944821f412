"""Facts about the Python class: what it answers, what it refuses, and how it ends."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref

import layerlift
import numpy as np
import pytest
from layerlift.runtime.errors import ContextFull, LayerliftError, UserError

CHAT = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def llm(tiny):
    with layerlift.LLM(tiny(), gpu="disable", context=128, threads=1) as opened:
        yield opened


def test_pieces_of_a_stream_are_the_answer(llm):
    whole = llm.generate("Hello", max_tokens=12, temperature=0)
    assert "".join(llm.generate("Hello", max_tokens=12, temperature=0, stream=True)) == whole
    answer = llm.chat(CHAT, max_tokens=12, temperature=0)
    assert "".join(llm.chat(CHAT, max_tokens=12, temperature=0, stream=True)) == answer


def test_threads_share_one_engine(llm):
    prompts = [f"Number {i}" for i in range(8)]
    alone = [llm.generate(prompt, max_tokens=6, temperature=0) for prompt in prompts]
    together = [""] * len(prompts)

    def work(i: int) -> None:
        together[i] = llm.generate(prompts[i], max_tokens=6, temperature=0)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_an_embedding_has_length_one(llm):
    vectors = llm.embed(["one text", "another"])
    assert vectors.shape == (2, llm.model.config.d_model)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(llm.embed("one text"), vectors[:1], atol=1e-5)
    assert llm.embed([]).shape == (0, llm.model.config.d_model)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.generate("x", temprature=1), "unknown setting 'temprature'"),
        (lambda m: m.generate("x", temperature="1"), "temperature must be a number"),
        (lambda m: m.generate("x", max_tokens=2.5), "max_tokens is 2.5"),
        (lambda m: m.generate("x", max_tokens=-3), "max_tokens is -3"),
        (lambda m: m.generate("x", stop=[1]), "must be texts"),
        (lambda m: m.generate("x", grammar='root ::= "a"'), "must be a compiled Grammar"),
        (lambda m: m.generate("x", logit_bias={10**6: 1.0}), "outside the vocabulary"),
        (lambda m: m.generate("x", logit_bias={10**6: 1.0}, stream=True), "outside the vocabulary"),
        (lambda m: m.chat([]), "there are no messages"),
        (lambda m: m.chat("Hello"), r"messages\[0\]"),
        (lambda m: m.embed(["x"], pooling="max"), "pooling is 'max'"),
    ],
)
def test_what_cannot_work_is_refused_at_once(llm, call, message):
    with pytest.raises(UserError, match=message):
        call(llm)


def test_a_prompt_beyond_the_context_is_refused(llm):
    with pytest.raises(ContextFull):
        llm.generate("Hello " * 200)


def test_a_stream_that_nobody_reads_frees_its_slot(tiny):
    with layerlift.LLM(tiny(), gpu="disable", slots=1, context=8192, threads=1) as llm:
        llm.generate("Hello", max_tokens=-2, stream=True)
        gc.collect()
        assert isinstance(llm.generate("Hello", max_tokens=1), str)


@pytest.mark.parametrize("setting", [{"context": -5}, {"slots": 0}, {"ngl": "many"}, {"ngl": -3}, {"kv_dtype": "q8"}])
def test_impossible_settings_are_refused(tiny, setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        layerlift.LLM(tiny(), gpu="disable", **setting)


def test_a_loop_left_early_frees_its_slot(tiny):
    with layerlift.LLM(tiny(), gpu="disable", slots=1, context=8192, threads=1) as llm:
        for _ in llm.generate("Hello", max_tokens=-2, stream=True):
            break
        assert isinstance(llm.generate("Hello", max_tokens=1), str)


def test_a_closed_model_says_so(tiny):
    llm = layerlift.LLM(tiny(), gpu="disable", threads=1)
    llm.close()
    llm.close()
    calls = [llm.generate, llm.tokenize, lambda text: llm.chat([{"role": "user", "content": text}]), llm.embed]
    for call in calls:
        with pytest.raises(LayerliftError, match="closed"):
            call("x")


def test_a_model_that_nobody_refers_to_is_closed_but_not_under_its_stream(tiny):
    pieces = layerlift.LLM(tiny(), gpu="disable", threads=1).generate("Hello", max_tokens=8, temperature=0, stream=True)
    assert "".join(pieces)
    llm = layerlift.LLM(tiny(), gpu="disable", threads=1)
    engine, gone = llm.engine, weakref.ref(llm)
    del llm
    gc.collect()
    assert gone() is None
    with pytest.raises(LayerliftError, match="closed"):
        engine.session().save("unused")


def test_a_program_may_end_in_the_middle_of_an_answer(tiny):
    code = (
        "import layerlift, sys; llm = layerlift.LLM(sys.argv[1], gpu='disable', context=0)\n"
        "next(iter(pieces := llm.generate('Hello', max_tokens=-2, stream=True)))"
    )
    # Python 3.12 and later warn of any fork beside a thread.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, tiny()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_gets_an_error_instead_of_waiting(tiny):
    code = (
        "import layerlift, os, sys; llm = layerlift.LLM(sys.argv[1], gpu='disable')\n"
        "if os.fork() == 0:\n"
        "    try: llm.generate('Hello')\n"
        "    except layerlift.LayerliftError as error: os._exit(7 if 'another process' in str(error) else 1)\n"
        "assert os.waitstatus_to_exitcode(os.wait()[1]) == 7\n"
        "llm.generate('Hello', max_tokens=2)"
    )
    # Python 3.12 and later warn of any fork beside a thread.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, tiny()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
