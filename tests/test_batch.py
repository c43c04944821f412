from hypothesis import given
from hypothesis import strategies as st
from layerlift.runtime.batch import LEAST, Pace, Share, choose


def test_a_single_prompt_fills_the_batch():
    assert choose([900], batch=512, chunk=96, reading=False) == [Share(0, 512)]


def test_answers_and_prompts_take_turns():
    pending = [700, 1, 1]
    assert choose(pending, batch=512, chunk=96, reading=False) == [Share(1, 1), Share(2, 1)]
    assert choose(pending, batch=512, chunk=96, reading=True) == [Share(0, 96)]


def test_a_turn_that_nobody_needs_goes_to_the_others():
    assert choose([1, 1], batch=512, chunk=96, reading=True) == [Share(0, 1), Share(1, 1)]
    assert choose([30, 40], batch=512, chunk=24, reading=False) == [Share(0, 30), Share(1, 40)]


def test_prompts_are_served_in_order_of_arrival():
    assert choose([300, 300, 300], batch=512, chunk=96, reading=True) == [Share(0, 300), Share(1, 212)]


def test_the_last_few_tokens_of_a_prompt_are_not_left_alone():
    assert choose([104, 1], batch=512, chunk=96, reading=True) == [Share(0, 104)]
    assert choose([105, 1], batch=512, chunk=96, reading=True) == [Share(0, 96)]
    assert choose([90, 300, 1], batch=512, chunk=96, reading=True) == [Share(0, 90)]  # 6 would be too few to begin with


def test_more_generating_sequences_than_the_batch_holds_are_cut():
    assert len(choose([1] * 9, batch=4, chunk=2, reading=True)) == 4


@given(st.lists(st.integers(1, 400), min_size=1, max_size=10), st.integers(1, 128), st.integers(1, 64), st.booleans())
def test_a_step_is_never_empty_nor_larger_than_the_batch(pending, batch, chunk, reading):
    shares = choose(pending, batch=batch, chunk=chunk, reading=reading)
    assert 1 <= sum(s.count for s in shares) <= batch
    assert all(1 <= s.count <= pending[s.task] for s in shares)
    assert [s.task for s in shares] == sorted({s.task for s in shares})
    assert len({pending[s.task] == 1 for s in shares}) == 1  # of one kind


def after(pace: Pace, seconds: float, tokens: int, *, waiting: bool = True) -> int:
    """The chunk when answers had to wait `seconds` for `tokens` of a prompt."""
    pace.answered(10.0)
    assert pace.reading
    pace.read(tokens, waiting=waiting)
    assert not pace.reading
    pace.answered(10.0 + seconds)
    return pace.chunk


def test_the_pace_follows_how_long_answers_waited():
    pace = Pace(0.1)
    assert after(pace, 0.3, pace.chunk) == 2 * LEAST
    assert [after(pace, 0.3, pace.chunk) for _ in range(5)][-1] == LEAST
    assert after(pace, 0.03, 5) == LEAST  # a short prompt says nothing of longer ones
    assert after(pace, 0.03, LEAST) == 2 * LEAST
    assert after(pace, 0.07, 2 * LEAST) == 2 * LEAST


def test_a_pause_that_nobody_waited_in_says_nothing():
    assert after(Pace(0.1), 60.0, 500, waiting=False) == Pace(0.1).chunk
