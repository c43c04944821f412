"""A compressed tree of token prefixes whose keys and values are in the cache.

Each edge carries a run of tokens and the rows that hold them, so a path from the root is a prefix that a new sequence
can start with (RadixAttention: Zheng et al. 2023, arXiv:2312.07104). The tree gives rows back on demand, from the ends
of the least recently used branches. Knows nothing of sequences, layers or bytes. One thread at a time.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from .rows import RowPool

Ints = NDArray[np.int32]


def common_prefix(a: Ints, b: Ints) -> int:
    """How many leading values a [n] and b [m] share."""
    n = min(len(a), len(b))
    start, size = 0, 64  # most comparisons fail early; the others soon compare in large pieces
    while start < n:
        end = min(start + size, n)
        differs = a[start:end] != b[start:end]
        if differs.any():
            return start + int(differs.argmax())
        start, size = end, size * 8
    return n


class Node:
    """The edge that leads here, with its tokens [n] and rows [n], and what follows it."""

    __slots__ = ("children", "parent", "queued", "rows", "stamp", "tokens")

    def __init__(self, parent: Node | None, tokens: Ints, rows: Ints, stamp: int):
        self.parent, self.tokens, self.rows, self.stamp = parent, tokens, rows, stamp
        self.children: dict[int, Node] = {}  # by first token
        self.queued = False  # has its entry in the tree's heap


class RadixTree:
    """Prefixes of ended sequences. Their rows are kept in `pool` until `evict` or `clear`.

    In any edge the rows that live sequences hold come first, because a sequence holds a whole prefix; what can be
    evicted is therefore always an edge's tail.
    """

    def __init__(self, pool: RowPool):
        self._pool = pool
        self._clear()

    def _clear(self) -> None:
        empty = np.empty(0, np.int32)
        self._root = Node(None, empty, empty, 0)
        self._clock = 0  # counts uses; a node's stamp is its last one
        self._serial = 0
        # Leaves by last use. An entry may be out of date; it is looked at when it comes up.
        self._leaves: list[tuple[int, int, Node]] = []

    def match(self, tokens: Ints, *, touch: bool) -> Ints:
        """Rows of the longest cached prefix of `tokens`; `touch` counts it as used now."""
        node, parts, done = self._root, [], 0
        self._clock += touch
        while done < len(tokens):
            child = node.children.get(int(tokens[done]))
            if child is None:
                break
            n = common_prefix(child.tokens, tokens[done:])
            parts.append(child.rows[:n])
            done += n
            partial = n < len(child.tokens)
            if touch:
                if partial:  # what was not asked for keeps its age
                    child = self._split(child, n)
                child.stamp = self._clock
            if partial:
                break
            node = child
        return np.concatenate(parts) if parts else self._root.rows

    def insert(self, tokens: Ints, rows: Ints) -> None:
        """Keeps a prefix [n] and its rows [n], which are in use. What is there already stays with its own rows."""
        node, done = self._root, 0
        self._clock += 1
        while done < len(tokens):
            child = node.children.get(int(tokens[done]))
            if child is None:
                child = Node(node, tokens[done:].copy(), rows[done:].copy(), self._clock)
                self._pool.keep(child.rows)
                node.children[int(tokens[done])] = child
                self._queue(child)
                return
            n = common_prefix(child.tokens, tokens[done:])
            if n < len(child.tokens):
                child = self._split(child, n)
            child.stamp = self._clock
            done += n
            node = child

    def evict(self, n: int) -> int:
        """Frees n idle rows, least recently used first; fewer only if there are fewer. Returns how many."""
        freed, in_use = 0, []
        while freed < n and (self._leaves or in_use):
            if not self._leaves:
                if not (blocking := next((leaf for leaf in in_use if self._above_is_idle(leaf)), None)):
                    break
                in_use.remove(blocking)
                freed += self._pool.forget(blocking.rows)  # live sequences hold these rows: nothing is lost
                self._remove(blocking)
                continue
            stamp, _, node = heapq.heappop(self._leaves)
            node.queued = False
            if node.children:
                continue
            if node.stamp != stamp:
                self._queue(node)
                continue
            idle = self._pool.idle_tail(node.rows[freed - n :])  # no more than are needed
            if not idle:
                in_use.append(node)
                continue
            freed += self._pool.forget(node.rows[-idle:])
            if idle == len(node.rows):
                self._remove(node)
            else:
                node.tokens, node.rows = node.tokens[:-idle], node.rows[:-idle]
                self._queue(node)
        for node in in_use:
            self._queue(node)
        return freed

    def clear(self) -> None:
        """Lets go of every row."""
        nodes = list(self._root.children.values())
        while nodes:
            node = nodes.pop()
            nodes.extend(node.children.values())
            self._pool.forget(node.rows)
        self._clear()

    def _queue(self, leaf: Node) -> None:
        assert not leaf.queued
        leaf.queued = True
        self._serial += 1
        heapq.heappush(self._leaves, (leaf.stamp, self._serial, leaf))

    def _split(self, node: Node, n: int) -> Node:
        """Cuts the edge to `node` after n tokens; the new node in the middle. `node` keeps its age and its place."""
        parent = node.parent
        assert parent is not None
        assert 0 < n < len(node.tokens)
        upper = Node(parent, node.tokens[:n], node.rows[:n], node.stamp)
        node.parent, node.tokens, node.rows = upper, node.tokens[n:], node.rows[n:]
        parent.children[int(upper.tokens[0])] = upper
        upper.children[int(node.tokens[0])] = node
        return upper

    def _remove(self, leaf: Node) -> None:
        parent = leaf.parent
        assert parent is not None
        assert not leaf.children
        del parent.children[int(leaf.tokens[0])]
        if parent is not self._root and not parent.children and not parent.queued:
            self._queue(parent)

    def _above_is_idle(self, node: Node) -> bool:
        """Whether an edge between the root and `node` ends with an idle row."""
        above = node.parent
        while above is not None and above is not self._root:
            if self._pool.idle_tail(above.rows[-1:]):
                return True
            above = above.parent
        return False
