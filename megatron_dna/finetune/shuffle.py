"""Sequence without meaning: the same bases and pairs of neighbours in another order."""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def shuffle_dinucleotides(sequence: str, draw: np.random.Generator) -> str:
    """A random sequence with the same first and last base and the same count of every dinucleotide.

    Source: Altschul and Erickson 1985: a random Eulerian path, by drawing for each letter the edge
    that is used last until those edges lead to the last letter, then shuffling the others.
    """
    edges: dict[str, list[str]] = {}
    for left, right in pairwise(sequence):
        edges.setdefault(left, []).append(right)
    if not edges:
        return sequence
    end = sequence[-1]
    while True:
        last = {base: str(draw.choice(nexts)) for base, nexts in edges.items() if base != end}
        if all(_leads_to(base, end, last) for base in last):
            break
    for base, nexts in edges.items():
        if base != end:
            nexts.remove(last[base])
        edges[base] = [str(letter) for letter in draw.permutation(nexts)]
        if base != end:
            edges[base].append(last[base])
    shuffled = [sequence[0]]
    for _ in range(len(sequence) - 1):
        shuffled.append(edges[shuffled[-1]].pop(0))
    return "".join(shuffled)


def _leads_to(base: str, end: str, last: dict[str, str]) -> bool:
    for _ in range(len(last)):
        if base == end:
            break
        base = last[base]
    return base == end
