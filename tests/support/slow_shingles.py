"""Overlaps of shingles by their definition, on Python sets."""

from __future__ import annotations


def slow_shingles(sequence: list[int], n: int) -> set[tuple[int, ...]]:
    width = min(n, len(sequence))
    return {tuple(sequence[i : i + width]) for i in range(len(sequence) - width + 1)} if sequence else set()


def slow_pairs(
    queries: list[list[int]], held: list[list[int]], n: int, threshold: float
) -> dict[tuple[int, int], float]:
    found = {}
    for i, query in enumerate(queries):
        for j, other in enumerate(held):
            a, b = slow_shingles(query, n), slow_shingles(other, n)
            if a and b and len(a & b) / len(a | b) > threshold:
                found[i, j] = len(a & b) / len(a | b)
    return found
