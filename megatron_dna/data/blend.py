"""Weighted blends of sources, without state: sample n -> (source, sample of that source).

The sources are the leaves of a binary tree built as Huffman's is, the two lightest first. A node
that has received n samples has passed round(n x share) of them to its left branch, the others to
its right: so sample n's way down, and its number at each node, follow from n alone in exact integer
arithmetic. At every n the counts add up to n and a source has its exact share to within about one
sample (half a sample a level, shrinking with the shares below it), in a fixed regular order; what a
source's samples are is shuffled by its own window index.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class _Node:
    """A branch; children are branches or numbers of sources."""

    left: _Node | int
    right: _Node | int
    numerator: int
    """Share of the left child in the node's samples: numerator / denominator."""
    denominator: int


class Blend:
    """Endless blend of sources by weight."""

    def __init__(self, weights: Sequence[float]) -> None:
        """Builds the tree.

        Args:
            weights: positive, relative to each other.

        Raises:
            ValueError: there is no weight, or one is not positive and finite.
        """
        if not weights:
            raise ValueError("weights ([]) must have at least one source")
        for i, weight in enumerate(weights):
            if not 0 < weight < float("inf"):
                raise ValueError(f"weights[{i}] ({weight}) must be positive and finite")
        # The number breaks ties and keeps nodes from being compared.
        heap: list[tuple[Fraction, int, _Node | int]] = [
            (Fraction(weight), i, i) for i, weight in enumerate(weights)
        ]
        heapq.heapify(heap)
        for number in range(len(weights), 2 * len(weights) - 1):
            left, right = heapq.heappop(heap), heapq.heappop(heap)
            total = left[0] + right[0]
            share = left[0] / total
            node = _Node(left[2], right[2], share.numerator, share.denominator)
            heapq.heappush(heap, (total, number, node))
        self._root = heap[0][2]

    def locate(self, sample: int) -> tuple[int, int]:
        """The source of sample `sample` (from 0 on), and the sample's number in that source."""
        node, n = self._root, sample
        while isinstance(node, _Node):
            before = _round(n * node.numerator, node.denominator)
            if _round((n + 1) * node.numerator, node.denominator) > before:
                node, n = node.left, before
            else:
                node, n = node.right, n - before
        return node, n


def _round(numerator: int, denominator: int) -> int:
    """Nearest integer to a fraction, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)
