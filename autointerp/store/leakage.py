"""Checks how much of the text behind one dictionary's scores its explainers had already seen (laws 3 and 9).

All stored contexts of the dictionary's current harvest are compared. By law no document and no snippet's text is in two
splits, and every score was made on the part that it names. LeakageReport.broken lists what does not hold.
Near-duplicates (licence headers, generated code, quoted mail) are a property of the corpus that a split by document
cannot rule out. They are counted over all three pairs of splits, and the report names the features whose scores they
may lift: as near-duplicates of whole contexts, and, since little text around a peak can be all that a feature reads,
as peaks whose last tokens stand in a context that was seen (peak_leaks.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from autointerp.errors import InputError
from autointerp.records import SPLITS, Split
from autointerp.store.near_duplicates import Ints, ShingleIndex, indexed, near_pairs, runs, shingles_of, spans
from autointerp.store.peak_leaks import PAIRS, SHOWN, PeakLeaks, peak_leaks
from autointerp.store.rows import DictionaryRow
from autointerp.store.store import Store

NGRAM = 8
"""Number of tokens in a shingle."""
THRESHOLD = 0.5
"""Two contexts with a larger overlap (Jaccard, 0..1) are near-duplicates."""
_BLOCK_TOKENS = 2**21
"""Tokens of snippets in memory at a time, on each of the two sides."""
_EXPANDED = 2**21

# Special tokens in front of a document are not part of its text, so `low` leaves them out. Token sequences are compared
# by two hashes of 64 bits, texts by one.
_CONTEXTS = """
    CREATE TEMP TABLE leakage_contexts AS
    SELECT c.context_id, c.feature, c.split, c.window_id, c."offset" + c.length AS high,
        least(greatest(c."offset", w.n_prefix), high) AS low, hash(w.token_ids[low + 1 : high]) AS ids_hash,
        hash(array_to_string(w.tokens[c."offset" + 1 : high], '')) AS text
    FROM evidence.context_rows AS c JOIN evidence.windows AS w USING (window_id)
    WHERE c.dictionary_id = ? AND c.harvest_id = ?
"""
# Contexts with equal tokens are one snippet. Snippets are numbered from 0 in each split, in the order of their windows.
_SNIPPETS = """
    CREATE TEMP TABLE leakage_snippets AS
    SELECT *, row_number() OVER (PARTITION BY split ORDER BY place.window_id, place.low, context_id) - 1 AS snippet
    FROM (
        SELECT split, ids_hash, text, min(context_id) AS context_id,
            arg_min({'window_id': window_id, 'low': low, 'high': high}, context_id) AS place
        FROM leakage_contexts
        GROUP BY split, ids_hash, text
    )
"""
# A window's own split counts as well as its contexts' splits. If they differ, the document is on both sides.
_DOCUMENTS = """
    SELECT count(*) FILTER (len(splits) > 1), count(*) FILTER (list_has_all(splits, ['select', 'report']))
    FROM (
        SELECT list_distinct(flatten(list([c.split, w.split]))) AS splits
        FROM (SELECT DISTINCT window_id, split FROM leakage_contexts) AS c JOIN evidence.windows AS w USING (window_id)
        GROUP BY w.corpus_id, w.document
    )
"""
_TEXTS = """
    SELECT count(*) FILTER (len(splits) > 1), count(*) FILTER (list_has_all(splits, ['select', 'report']))
    FROM (SELECT list(DISTINCT split) AS splits FROM leakage_contexts GROUP BY text)
"""
_PREDICTIONS = """
    SELECT count(*) FROM predictions AS p JOIN scores AS s USING (score_id)
    JOIN evidence.context_rows AS c USING (context_id)
    WHERE s.dictionary_id = ? AND c.split <> s.part
"""


@dataclass(frozen=True, slots=True)
class NearPair:
    context_id: int
    """A context of the held-out part."""
    seen_context_id: int
    overlap: float
    """Jaccard, 0..1."""


@dataclass(frozen=True, slots=True)
class FeatureNear:
    feature: int
    n_contexts: int
    n_near: int
    """Contexts with a near-duplicate among the seen contexts of the same feature: these may lift its score."""


@dataclass(frozen=True, slots=True)
class PartNear:
    """Near-duplicates between the contexts of one held-out part and those of another split, which was seen before."""

    seen: Split
    part: Split
    n_contexts: int
    n_near: int
    """Contexts with a near-duplicate among all seen contexts."""
    n_near_own: int
    """Contexts with a near-duplicate among the seen contexts of their own feature."""
    share: float | None
    """n_near / n_contexts; None without contexts."""
    share_own: float | None
    n_features: int
    examples: list[NearPair]
    """The SHOWN largest overlaps, at most one for each snippet."""
    features: list[FeatureNear]
    """Every feature with n_near above 0, the one with the largest share first."""


@dataclass(frozen=True, slots=True)
class LeakageReport:
    dictionary: str
    harvest_id: int
    ngram: int
    threshold: float
    n_contexts: dict[Split, int]
    n_shared_documents: int
    """Documents with contexts in more than one split."""
    n_shared_texts: int
    """Texts of contexts, of any features, that are in more than one split."""
    n_documents_in_both_parts: int
    """Documents with contexts in both select and report."""
    n_texts_in_both_parts: int
    n_misplaced_predictions: int
    """Predictions that were made on a context of another split than their score's part."""
    near: list[PartNear]
    """The near-duplicates of each of PAIRS."""
    peaks: list[PeakLeaks]
    """The peaks that were seen, of each of PAIRS."""

    def broken(self) -> list[str]:
        """The broken laws, one line each; empty if all hold."""
        counts = {
            "documents with contexts in more than one split": self.n_shared_documents,
            "snippets whose text stands in more than one split": self.n_shared_texts,
            "documents that stand in both select and report": self.n_documents_in_both_parts,
            "snippets whose text stands in both select and report": self.n_texts_in_both_parts,
            "predictions made on another split than their score's part": self.n_misplaced_predictions,
        }
        return [f"{n:,} {what}" for what, n in counts.items() if n]

    def lines(self) -> list[str]:
        """The report for a person to read."""
        splits = ", ".join(f"{n:,} {split}" for split, n in self.n_contexts.items())
        found = [
            f"leakage over {sum(self.n_contexts.values()):,} contexts ({splits}): {self.n_shared_documents:,} "
            f"documents and {self.n_shared_texts:,} snippets in more than one split",
            f"select and report: {self.n_documents_in_both_parts:,} documents and {self.n_texts_in_both_parts:,} "
            f"snippets in both, {self.n_misplaced_predictions:,} predictions on the wrong split",
        ]
        for near in self.near:
            found += _near_lines(near, self.ngram, self.threshold)
        for peaks in self.peaks:
            found += _peak_lines(peaks, self.ngram)
        return [f"{self.dictionary}: {line}" for line in found]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, fit for JSON, `broken` included."""
        return {**asdict(self), "broken": self.broken()}


def check_leakage(store: Store, row: DictionaryRow, ngram: int = NGRAM, threshold: float = THRESHOLD) -> LeakageReport:
    """The leakage report of one dictionary. `ngram` is the number of tokens in a shingle, `threshold` the largest
    overlap that is not reported (0 <= threshold < 1).

    Memory grows only with the stored contexts (some 50 bytes each). Raises InputError if the dictionary has no stored
    contexts, or for values out of range.
    """
    if ngram < 1:
        raise InputError(f"a shingle needs at least one token, not {ngram}")
    if not 0 <= threshold < 1:
        raise InputError(f"the overlap's threshold must be at least 0 and below 1, not {threshold:g}")
    harvest_id = store.current_harvest(row.dictionary_id)
    with store.cursor() as cursor:
        cursor.execute(_CONTEXTS, [row.dictionary_id, harvest_id])
        cursor.execute(_SNIPPETS)
        held = dict(cursor.execute("SELECT split, count(*) FROM leakage_contexts GROUP BY split").fetchall())
        if not held or harvest_id is None:
            raise InputError(f"{row.name} has no stored contexts to check; run `autointerp harvest` first")
        documents, documents_in_both = _two(cursor.execute(_DOCUMENTS))
        texts, texts_in_both = _two(cursor.execute(_TEXTS))
        misplaced = cursor.execute(_PREDICTIONS, [row.dictionary_id]).fetchone()
        near = _near_duplicates(cursor, ngram, threshold)
        peaks = peak_leaks(cursor, row.dictionary_id, harvest_id, ngram)
    return LeakageReport(
        dictionary=row.name,
        harvest_id=harvest_id,
        ngram=ngram,
        threshold=threshold,
        n_contexts={split: held.get(split, 0) for split in SPLITS},
        n_shared_documents=documents,
        n_shared_texts=texts,
        n_documents_in_both_parts=documents_in_both,
        n_texts_in_both_parts=texts_in_both,
        n_misplaced_predictions=misplaced[0] if misplaced else 0,
        near=near,
        peaks=peaks,
    )


def _two(answer: duckdb.DuckDBPyConnection) -> tuple[int, int]:
    return answer.fetchall()[0]


class _Side:
    """The contexts and snippets of one split. Contexts are in the order of their snippets."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, split: Split) -> None:
        self.split, self._cursor = split, cursor
        contexts = cursor.execute(
            """SELECT s.snippet, c.feature::BIGINT AS feature FROM leakage_contexts AS c
               JOIN leakage_snippets AS s USING (split, ids_hash, text) WHERE split = ? ORDER BY ALL""",
            [split],
        ).fetchnumpy()
        self.features = np.asarray(contexts["feature"], dtype=np.int64)
        self.snippets = np.asarray(contexts["snippet"], dtype=np.int64)
        found = cursor.execute(
            """SELECT context_id, (place.high - place.low)::BIGINT AS length FROM leakage_snippets
               WHERE split = ? ORDER BY snippet""",
            [split],
        ).fetchnumpy()
        self.context_ids = np.asarray(found["context_id"], dtype=np.int64)
        self.lengths = np.asarray(found["length"], dtype=np.int64)
        self.first = np.searchsorted(self.snippets, np.arange(len(self.lengths) + 1))

    def blocks(self) -> Iterator[tuple[int, Ints, Ints]]:
        """Yields all snippets, a bounded number of tokens at a time: (number of the first snippet, tokens, lengths)."""
        for low, high in runs(np.arange(len(self.lengths)), self.lengths, _BLOCK_TOKENS):
            found = self._cursor.execute(
                """SELECT w.token_ids[s.place.low + 1 : s.place.high] AS ids
                   FROM leakage_snippets AS s JOIN evidence.windows AS w ON w.window_id = s.place.window_id
                   WHERE s.split = ? AND s.snippet >= ? AND s.snippet < ? ORDER BY s.snippet""",
                [self.split, low, high],
            ).fetchnumpy()
            yield low, np.concatenate([np.asarray(ids, dtype=np.int64) for ids in found["ids"]]), self.lengths[low:high]


class _Part:
    """The near-duplicates found so far in one held-out part."""

    def __init__(self, side: _Side) -> None:
        self.side = side
        self.best = np.zeros(len(side.lengths))
        self.partner = np.zeros(len(side.lengths), dtype=np.int64)
        self.is_own = np.zeros(len(side.features), dtype=bool)

    def take(self, snippets: Ints, seen: Ints, overlap: NDArray[np.float64], own: _OwnContexts) -> None:
        order = np.lexsort((seen, -overlap, snippets))
        found, first = np.unique(snippets[order], return_index=True)
        places = order[first]
        is_better = overlap[places] > self.best[found]
        self.best[found[is_better]] = overlap[places[is_better]]
        self.partner[found[is_better]] = seen[places[is_better]]
        # Each pair of snippets stands for all contexts, of several features, that show the first snippet.
        n_contexts = np.diff(self.side.first)[snippets]
        for low, high in runs(np.arange(len(snippets)), n_contexts, _EXPANDED):
            counts = n_contexts[low:high]
            contexts = spans(self.side.first[snippets[low:high]], counts)
            is_own = own.have(self.side.features[contexts], np.repeat(seen[low:high], counts))
            self.is_own[contexts[is_own]] = True

    def result(self, seen: _Side) -> PartNear:
        side, n = self.side, len(self.side.features)
        n_near, n_own = int((self.best > 0)[side.snippets].sum()), int(self.is_own.sum())
        near = np.flatnonzero(self.best)
        shown = near[np.lexsort((side.context_ids[near], -self.best[near]))][:SHOWN]
        examples = [
            NearPair(int(side.context_ids[s]), int(seen.context_ids[self.partner[s]]), float(self.best[s]))
            for s in shown
        ]
        features, counts = np.unique(side.features, return_counts=True)
        own = np.bincount(np.searchsorted(features, side.features[self.is_own]), minlength=len(features))
        order = [i for i in np.lexsort((features, -own, -own / counts)) if own[i]]
        touched = [FeatureNear(int(features[i]), int(counts[i]), int(own[i])) for i in order]
        share, share_own = (n_near / n, n_own / n) if n else (None, None)
        return PartNear(seen.split, side.split, n, n_near, n_own, share, share_own, len(features), examples, touched)


class _OwnContexts:
    """Tells which of the seen snippets each feature has."""

    def __init__(self, seen: _Side) -> None:
        self._n = max(1, len(seen.lengths))
        self._keys = np.unique(seen.features * self._n + seen.snippets)

    def have(self, features: Ints, snippets: Ints) -> NDArray[np.bool_]:
        keys = features * self._n + snippets
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return self._keys[places] == keys


def _near_duplicates(cursor: duckdb.DuckDBPyConnection, ngram: int, threshold: float) -> list[PartNear]:
    sides = {split: _Side(cursor, split) for split in SPLITS}
    parts = {pair: _Part(sides[pair[1]]) for pair in PAIRS}
    for seen in dict.fromkeys(seen for seen, _ in PAIRS):
        own = _OwnContexts(sides[seen])
        for before, tokens, lengths in sides[seen].blocks():
            index = indexed(shingles_of(tokens, lengths, ngram))
            for pair in PAIRS:
                if pair[0] == seen:
                    _compare(parts[pair], index, before, own, ngram, threshold)
    return [parts[pair].result(sides[pair[0]]) for pair in PAIRS]


def _compare(part: _Part, index: ShingleIndex, before: int, own: _OwnContexts, ngram: int, threshold: float) -> None:
    """Compares one held-out part with a block of seen snippets, the first of which has the number `before`."""
    for first, tokens, lengths in part.side.blocks():
        for snippets, seen, overlap in near_pairs(shingles_of(tokens, lengths, ngram), index, threshold):
            part.take(snippets + first, seen + before, overlap, own)


def _near_lines(near: PartNear, ngram: int, threshold: float) -> list[str]:
    found = (
        f"near-duplicates ({ngram}-token shingles, Jaccard overlap above {threshold:g}): {near.n_near:,} of "
        f"{near.n_contexts:,} {near.part} contexts ({_percent(near.share)}) resemble {_a(near.seen)} context; "
        f"{near.n_near_own:,} ({_percent(near.share_own)}) one of their own feature, in {len(near.features):,} of "
        f"{near.n_features:,} features"
    )
    examples = [
        f"  {near.part} context {pair.context_id} and {near.seen} context {pair.seen_context_id} overlap by "
        f"{pair.overlap:.2f}"
        for pair in near.examples
    ]
    counts = [(one.feature, one.n_near, one.n_contexts) for one in near.features]
    return [found, *examples, *_most_of(f"own {near.part} contexts", counts)]


def _peak_lines(peaks: PeakLeaks, ngram: int) -> list[str]:
    found = (
        f"peaks: the {ngram} tokens that end at the peak stand in {_a(peaks.seen)} context of the same feature for "
        f"{peaks.n_contained:,} of {peaks.n_contexts:,} active {peaks.held} contexts ({_percent(peaks.share)}), "
        f"{peaks.n_top_contained:,} of {peaks.n_top:,} top ones ({_percent(peaks.share_top)}), in "
        f"{len(peaks.features):,} of {peaks.n_features:,} features"
    )
    examples = [
        f"  the peak of {peaks.held} context {pair.context_id} stands in {peaks.seen} context {pair.seen_context_id}"
        for pair in peaks.examples
    ]
    counts = [(one.feature, one.n_contained, one.n_contexts) for one in peaks.features]
    return [found, *examples, *_most_of(f"{peaks.held} peaks", counts)]


def _most_of(what: str, counts: Sequence[tuple[int, int, int]]) -> list[str]:
    """The line on the first features of `counts`, (feature, n, of how many); none where there are none."""
    named = ", ".join(f"{feature} ({n} of {of})" for feature, n, of in counts[:SHOWN])
    return [f"  features with the most of their {what}: {named}"] if counts else []


def _a(split: Split) -> str:
    return f"an {split}" if split == "explain" else f"a {split}"


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.3g} %"
