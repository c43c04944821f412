from hypothesis import given
from hypothesis import strategies as st
from layerlift.runtime.batch import Share, choose


def test_a_single_prompt_fills_the_batch():
    assert choose([900], batch=512, busy_batch=128) == [Share(0, 512)]


def test_generating_sequences_come_before_prompts():
    assert choose([700, 1, 1], batch=512, busy_batch=128) == [Share(0, 128), Share(1, 1), Share(2, 1)]


def test_prompts_are_served_in_order_of_arrival():
    assert choose([300, 300, 300], batch=512, busy_batch=128) == [Share(0, 300), Share(1, 212)]


def test_more_generating_sequences_than_the_batch_holds_are_cut():
    assert len(choose([1] * 9, batch=4, busy_batch=2)) == 4


@given(st.lists(st.integers(1, 400), min_size=1, max_size=10), st.integers(1, 128), st.integers(1, 64))
def test_a_step_is_never_empty_nor_larger_than_the_batch(pending, batch, busy):
    shares = choose(pending, batch=batch, busy_batch=busy)
    assert 1 <= sum(s.count for s in shares) <= batch
    assert all(1 <= s.count <= pending[s.task] for s in shares)
    assert [s.task for s in shares] == sorted({s.task for s in shares})
