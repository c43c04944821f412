"""Facts about a conversation's messages and tokens."""

from __future__ import annotations

import pytest
from fake_engine import BASE, TEMPLATES, FakeTemplate, FakeTokenizer, chatml
from layerlift.runtime.conversation import Conversation


def talk(name: str, *, system: str = "", add_bos: bool = False) -> Conversation:
    return Conversation(FakeTokenizer(add_bos=add_bos), FakeTemplate(TEMPLATES[name]), system=system)


def text_of(tokens) -> str:
    return FakeTokenizer().decode(tokens, special=True)


def ids(text: str) -> list[int]:
    return [BASE + ord(c) for c in text]


def two_turns(conversation: Conversation) -> Conversation:
    conversation.add("user", "one")
    conversation.answered("1", ids("1"))
    conversation.add("user", "two")
    conversation.answered("2", ids("2"))
    return conversation


@pytest.mark.parametrize("system", ["", "Be brief"])
@pytest.mark.parametrize("name", ["chatml", "chatml_with_default"])
def test_turn_by_turn_the_tokens_are_those_of_the_whole_conversation(name, system):
    conversation = two_turns(talk(name, system=system))
    conversation.add("user", "three")
    messages = [{"role": "system", "content": system}] if system else []
    for role, content in (("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "2"), ("user", "three")):
        messages.append({"role": role, "content": content})
    assert text_of(conversation.asked()) == TEMPLATES[name](messages, True)


def test_a_system_prompt_inside_the_first_question_is_written_once():
    conversation = two_turns(talk("system_inside", system="Be brief"))
    assert text_of(conversation.asked()) == "<s>[<<Be brief>> one]1 </s><s>[two]2 </s>"


def test_an_answer_keeps_its_own_tokens_and_what_is_behind_it_is_unchanged():
    conversation = talk("thoughts_dropped")
    conversation.add("user", "one")
    asked = conversation.asked()
    answer = ids("hm</think>1")
    conversation.answered("hm</think>1", answer)
    conversation.add("user", "two")
    assert conversation.asked()[: len(asked) + len(answer)] == asked + answer
    assert text_of(conversation.asked()).endswith(
        "<|im_end|>\n<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_answer_stopped_halfway_is_closed_like_a_whole_one():
    conversation = talk("chatml")
    conversation.add("user", "one")
    conversation.answered("hal", ids("hal"))
    assert text_of(conversation.tokens).endswith("<|im_start|>assistant\nhal<|im_end|>\n")


@pytest.mark.parametrize("name", ["chatml", "chatml_with_default"])
def test_the_start_token_comes_once_and_survives_forgetting(name):
    conversation = two_turns(talk(name, add_bos=True))
    assert conversation.tokens.count(FakeTokenizer.bos) == 1
    while conversation.forget()[0]:
        assert conversation.tokens[0] == FakeTokenizer.bos
        assert conversation.tokens.count(FakeTokenizer.bos) == 1


def test_a_start_token_that_the_template_writes_is_not_doubled():
    conversation = Conversation(
        FakeTokenizer(add_bos=True), FakeTemplate(lambda messages, cue: "<s>" + chatml(messages, cue))
    )
    two_turns(conversation)
    assert conversation.tokens.count(FakeTokenizer.bos) == 1


@pytest.mark.parametrize("name", ["chatml", "chatml_with_default"])
def test_forgetting_cuts_out_exactly_the_oldest_message(name):
    conversation = two_turns(talk(name, system="Be brief"))
    before = conversation.tokens
    gone, (begin, end) = conversation.forget()
    assert [m.content for m in gone] == ["one"]
    assert conversation.tokens == before[:begin] + before[end:]
    assert [m.content for m in conversation.messages] == ["Be brief", "1", "two", "2"]


def test_forgetting_keeps_a_system_prompt_that_the_first_question_held():
    conversation = two_turns(talk("system_inside", system="Be brief"))
    gone, span = conversation.forget()
    assert [m.content for m in gone] == ["one", "1"]
    assert span is None
    assert text_of(conversation.tokens) == "<s>[<<Be brief>> two]2 </s>"


def test_nothing_is_forgotten_when_only_the_system_prompt_is_left():
    conversation = talk("chatml", system="Be brief")
    assert conversation.forget() == ([], None)
    assert conversation.n_tokens > 0


def test_clear_leaves_the_opening_as_it_was():
    conversation = talk("chatml_with_default")
    opening = conversation.tokens
    assert "Be nice" in text_of(opening)
    two_turns(conversation).clear()
    assert conversation.tokens == opening


def test_a_role_that_the_template_refuses_becomes_the_users():
    conversation = two_turns(talk("system_inside"))
    assert conversation.add("system", "a file").role == "user"
    assert text_of(conversation.tokens).endswith("<s>[a file]")


def test_a_system_message_in_the_middle_keeps_its_role_where_it_may():
    conversation = two_turns(talk("chatml_with_default"))
    assert conversation.add("system", "a file").role == "system"
    assert text_of(conversation.tokens).endswith("2<|im_end|>\n<|im_start|>system\na file<|im_end|>\n")


def test_a_file_before_the_first_question_does_not_repeat_the_opening():
    conversation = talk("chatml_with_default")
    conversation.add("system", "a file")
    conversation.add("user", "one")
    assert text_of(conversation.tokens).count("Be nice") == 1


def test_a_base_model_gets_text_as_it_is():
    conversation = Conversation(FakeTokenizer(add_bos=True), None, system="Once ")
    conversation.add("user", "upon")
    conversation.answered(" a time", ids(" a time"))
    conversation.add("user", ", there")
    assert text_of(conversation.asked()) == "<s>Once upon a time, there"


@pytest.mark.parametrize("system", ["", "Be brief"])
@pytest.mark.parametrize("name", ["llama2", "llama3"])
def test_with_a_real_vocabulary_and_template_nothing_differs_from_the_whole(llama_vocab, name, system):
    from layerlift.runtime.gguf import open_gguf
    from layerlift.runtime.template import ChatTemplate
    from layerlift.runtime.tokenizer import Tokenizer

    with open_gguf(llama_vocab) as gguf:
        tokenizer = Tokenizer.from_gguf(gguf)
    bos, eos = (tokenizer.piece(id).decode() for id in (tokenizer.bos, tokenizer.eos))
    template = ChatTemplate.builtin(name, bos=bos, eos=eos)
    conversation = Conversation(tokenizer, template, system=system)
    messages = [{"role": "system", "content": system}] if system else []
    for role, content in (("user", "How many?"), ("assistant", "It's 12."), ("user", "And now,\n the rest?")):
        messages.append({"role": role, "content": content})
        if role == "user":
            conversation.add(role, content)
            assert conversation.asked() == tokenizer.encode(template.render(messages))
        else:
            generated = " " + content if name == "llama2" else content  # as the template writes it
            conversation.answered(content, tokenizer.encode(generated, add_special=False))
    assert tokenizer.decode(conversation.tokens, special=True).count("Be brief") == bool(system)
