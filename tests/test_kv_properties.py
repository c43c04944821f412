"""Any series of operations leaves the cache as a plain dict of token lists would be, row by row."""

from __future__ import annotations

import numpy as np
from fake_store import append, check_books, check_rows, make_cache, write
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from layerlift.runtime.errors import ContextFull

# Few different tokens, so that prefixes meet often.
TOKENS = st.lists(st.integers(0, 2), max_size=12)


class CacheMachine(RuleBasedStateMachine):
    """`model` holds what the cache should: the tokens of each open sequence."""

    open_ones = Bundle("open_ones")

    @initialize(capacity=st.sampled_from([8, 20, 40, 200]))
    def make(self, capacity):
        self.cache = make_cache(capacity)
        self.model: dict[int, list[int]] = {}
        self.sequences = {}
        self.shifted: set[int] = set()

    def add(self, seq, tokens):
        self.model[seq.id], self.sequences[seq.id] = list(tokens), seq
        return seq

    def in_use(self) -> int:
        return len({int(row) for seq in self.sequences.values() for row in seq.rows})

    @rule(target=open_ones, tokens=TOKENS, share=st.booleans())
    def open(self, tokens, share):
        expected = self.cache.shared_prefix(tokens[:-1]) if share else 0
        seq = self.cache.open(tokens, share=share)
        assert seq.length == expected
        unshifted = [t for i, t in self.model.items() if i not in self.shifted]
        if share:  # at least what open sequences offer
            assert seq.length >= max((_common(t, tokens[:-1]) for t in unshifted), default=0)
        return self.add(seq, tokens[: seq.length])

    @rule(seq=open_ones, tokens=TOKENS)
    def append(self, seq, tokens):
        before = (self.cache.used, self.cache.cached, self.cache.free)
        if self.in_use() + len(tokens) > self.cache.capacity:
            try:
                self.cache.reserve(seq, len(tokens))
            except ContextFull:
                assert before == (self.cache.used, self.cache.cached, self.cache.free)
                return
            raise AssertionError("rows from nowhere")
        append(self.cache, seq, tokens)
        self.model[seq.id] += tokens

    @rule(seq=open_ones, n=st.integers(0, 5))
    def reserve_and_roll_back(self, seq, n):
        if self.in_use() + n > self.cache.capacity:
            return
        rows = self.cache.reserve(seq, n)
        write(self.cache, rows, [99] * n, seq.length)  # a step that failed halfway
        self.cache.rollback(seq)

    @rule(seq=open_ones, data=st.data())
    def truncate(self, seq, data):
        length = data.draw(st.integers(0, seq.length))
        self.cache.truncate(seq, length)
        del self.model[seq.id][length:]
        if not seq.private:
            self.shifted.discard(seq.id)

    @rule(target=open_ones, seq=open_ones)
    def fork(self, seq):
        other = self.cache.fork(seq)
        assert other.private == seq.private
        if seq.private:
            self.shifted.add(other.id)
        return self.add(other, self.model[seq.id])

    @rule(seq=open_ones, data=st.data())
    def shift(self, seq, data):
        begin = data.draw(st.integers(0, seq.length))
        end = data.draw(st.integers(begin, seq.length))
        rows = seq.rows.tolist()
        others = {int(r) for s in self.sequences.values() if s is not seq for r in s.rows}
        moves = begin < end < len(rows)
        copies = sum(row in others for row in rows[end:]) if moves else 0
        freed = sum(row not in others for row in rows[begin:end])
        try:
            self.cache.shift(seq, begin, end)
        except ContextFull:
            assert self.in_use() - freed + copies > self.cache.capacity
            return
        del self.model[seq.id][begin:end]
        if moves:
            assert seq.private
            self.shifted.add(seq.id)
        elif not seq.private:
            self.shifted.discard(seq.id)

    @rule(seq=consumes(open_ones), keep=st.booleans())
    def close(self, seq, keep):
        tokens = self.model.pop(seq.id)
        del self.sequences[seq.id]
        self.cache.close(seq, keep=keep)
        if keep and seq.id not in self.shifted:
            assert self.cache.shared_prefix(tokens) == len(tokens)

    @rule()
    def clear(self):
        self.cache.clear()
        assert self.cache.cached == 0

    @rule(tokens=TOKENS)
    def cached_rows_hold_their_tokens(self, tokens):
        rows = self.cache._tree.match(np.array(tokens, np.int32), touch=False)
        for store in self.cache.stores:
            assert store.k[rows, 0].tolist() == [[t, i] for i, t in enumerate(tokens[: len(rows)])]

    @invariant()
    def rows_hold_exactly_their_sequences_tokens(self):
        for number, seq in self.sequences.items():
            assert seq.tokens == self.model[number]
            assert seq.private == (number in self.shifted)
            check_rows(self.cache, seq)

    @invariant()
    def every_row_is_accounted_for(self):
        check_books(self.cache, self.sequences.values())


def _common(a, b) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


CacheMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
test_any_series_of_operations = CacheMachine.TestCase
