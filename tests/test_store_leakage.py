"""Planted leaks are found and counted; disjoint corpora have none; what `autointerp verify --leakage-only` says."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.commands import run
from support.slow_shingles import slow_pairs
from support.store_fixtures import add_dictionary, add_features, explanation, prediction, score
from support.without_torch import run_without_torch

from autointerp.errors import InputError
from autointerp.store import Store, leakage
from autointerp.store import peak_leaks as peak_module
from autointerp.store.connection import sql_file
from autointerp.store.leakage import FeatureNear, LeakageReport, NearPair, check_leakage
from autointerp.store.peak_leaks import PAIRS, FeaturePeaks, PeakPair

BOS = 9999


class Snippet(NamedTuple):
    feature: int
    split: str
    ids: list[int]
    document: str = ""
    kind: str = "top"
    peak: int = 0
    """Place of the peak among `ids`."""


def made(path: Path, snippets: Sequence[Snippet], n_features: int = 4) -> Store:
    """A store whose context number i shows all of window i, which has a document of its own unless it names one."""
    store = Store.open(path, create=True)
    corpus_id = store.add_corpus("made", {}, "tok", len(snippets), 1)
    dictionary_id = add_dictionary(store, d_sae=n_features)
    harvest_id = store.add_harvest(dictionary_id, corpus_id, 1, {})
    new = path.with_name("new.evidence.duckdb")
    with duckdb.connect(str(new)) as con:
        con.execute(sql_file("evidence_schema.sql"))
        con.execute("INSERT INTO harvest_info VALUES (?, ?, ?, ?, 'sae', 0, NULL)",
                    [harvest_id, dictionary_id, corpus_id, store.store_id])  # fmt: skip
        con.begin()
        for i, s in enumerate(snippets):
            con.execute(
                "INSERT INTO windows VALUES (?, ?, ?, 0, 1, ?, ?, ?)",
                [i, corpus_id, s.document or f"doc{i}", s.split, [BOS, *s.ids], ["<s>", *(f" {t}" for t in s.ids)]],
            )
            con.execute(
                "INSERT INTO context_rows VALUES (?,?,?,?,?,?,NULL,NULL,NULL,0,?,0,?,?,[],[],0,NULL)",
                [i, dictionary_id, harvest_id, s.feature, s.split, s.kind, i, 1 + len(s.ids), s.peak],
            )
        con.commit()
    store.replace_evidence(new)
    add_features(store, dictionary_id, harvest_id, ["live"] * n_features)
    return store


def report_of(store: Store, **options: float) -> LeakageReport:
    return check_leakage(store, store.dictionary(), **options)  # type: ignore[arg-type]


def stretch(start: int, n: int = 32) -> list[int]:
    return list(range(start, start + n))


def apart() -> list[Snippet]:
    """Two features, two contexts in each split, all of different tokens."""
    places = [(f, split, i) for f in (0, 1) for split in ("explain", "select", "report") for i in (0, 1)]
    return [Snippet(f, split, stretch(100 * number)) for number, (f, split, _) in enumerate(places)]


def planted() -> list[Snippet]:
    """`apart` and, among the report contexts of feature 1, near-duplicates of explain contexts of features 0 and 1."""
    other, own = apart()[0].ids, apart()[6].ids
    return [
        *apart(),
        Snippet(1, "report", own[4:] + stretch(5000, 4)),  # number 12: moved by 4, 21 of 29 shingles shared
        Snippet(1, "report", other[:31] + [5010]),  # number 13: 24 of 26
        Snippet(1, "report", own[9:] + stretch(5020, 9)),  # number 14: moved by 9, 16 of 34
        Snippet(2, "select", own[1:] + [5030]),  # number 15: 24 of 26, of a feature with no explain context
    ]


def test_disjoint_text_has_no_leak(tmp_path: Path) -> None:
    with made(tmp_path / "x.duckdb", apart()) as store:
        found = report_of(store, threshold=0.0)
    assert found.broken() == []
    assert found.n_contexts == {"explain": 4, "select": 4, "report": 4}
    assert [(n.part, n.n_near, n.n_near_own, n.share, n.examples, n.features) for n in found.near] == [
        ("select", 0, 0, 0.0, [], []), ("report", 0, 0, 0.0, [], []), ("report", 0, 0, 0.0, [], []),
    ]  # fmt: skip
    assert [(n.seen, n.part) for n in found.near] == [(p.seen, p.held) for p in found.peaks] == list(PAIRS)
    assert all(p.n_contained == 0 for p in found.peaks)


def test_planted_near_duplicates_are_found(tmp_path: Path) -> None:
    with made(tmp_path / "x.duckdb", planted()) as store:
        found = report_of(store)
    select, report, after_select = found.near
    assert found.broken() == []
    assert (report.n_contexts, report.n_near, report.n_near_own) == (7, 2, 1)
    assert (report.share, report.share_own, report.n_features) == (2 / 7, 1 / 7, 2)
    assert report.examples == [NearPair(13, 0, 24 / 26), NearPair(12, 6, 21 / 29)]
    assert report.features == [FeatureNear(1, 5, 1)]
    assert (select.n_near, select.n_near_own, select.features) == (1, 0, [])
    assert select.examples == [NearPair(15, 6, 24 / 26)]
    # the select context 15 is cut from the same text as the report context 12, moved by 3
    assert after_select.examples == [NearPair(12, 15, 21 / 29)]
    assert (after_select.n_near, after_select.n_near_own) == (1, 0)


def peaks_of(snippets: Sequence[Snippet], path: Path) -> dict[tuple[str, str], tuple[int, int, int, int]]:
    with made(path, snippets) as store:
        found = report_of(store).peaks
    return {(p.seen, p.held): (p.n_contained, p.n_contexts, p.n_top_contained, p.n_top) for p in found}


def test_a_peak_that_was_seen_is_found_where_the_texts_differ(tmp_path: Path) -> None:
    """8 tokens of 32 in common: an overlap of 1/49, far below what counts as near, yet all that a feature reads."""
    own, phrase = apart()[0].ids, apart()[0].ids[10:18]
    held = [
        Snippet(0, "report", [*stretch(5000, 12), *phrase, *stretch(5100, 12)], peak=19),  # 12: ends with the phrase
        Snippet(0, "report", [*stretch(5200, 12), *phrase, *stretch(5300, 12)], peak=18),  # 13: one token earlier
        Snippet(1, "report", [*stretch(5400, 12), *phrase, *stretch(5500, 12)], peak=19),  # 14: another feature
        Snippet(0, "report", [*stretch(5600, 12), *phrase], kind="negative", peak=19),  # 15: no peak
        Snippet(0, "select", [*stretch(5700, 3), *own[5:13]], kind="sampled", peak=10),  # 16
        Snippet(0, "report", [*stretch(5800, 3), *own[5:13]], kind="sampled", peak=10),  # 17: as 16, and explain's 0
        Snippet(0, "report", stretch(5700, 5), peak=4),  # 18: too short a text for a run
    ]
    with made(tmp_path / "x.duckdb", [*apart(), *held]) as store:
        found = report_of(store)
    assert all(near.n_near == 0 for near in found.near)
    to_select, to_report, chosen = found.peaks
    # the two contexts of features 0 and 1 in each part have their peak on the first token, without a run
    assert (to_select.n_contained, to_select.n_contexts, to_select.n_top) == (1, 1, 0) and to_select.share_top is None
    assert (to_report.n_contained, to_report.n_contexts) == (2, 4)
    assert (to_report.n_top_contained, to_report.n_top, to_report.share_top) == (1, 3, 1 / 3)
    assert to_report.examples == [PeakPair(12, 0), PeakPair(17, 0)]
    assert to_report.features == [FeaturePeaks(0, 3, 2)] and to_report.n_features == 2
    assert (chosen.seen, chosen.held, chosen.examples) == ("select", "report", [PeakPair(17, 16)])
    assert any("stand in an explain context of the same feature for 2 of 4 active report contexts (50 %), "
               "1 of 3 top ones (33.3 %)" in line for line in found.lines())  # fmt: skip


def test_peaks_do_not_depend_on_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    text = [rng.randrange(2) for _ in range(70)]
    snippets = []
    for _ in range(60):
        start = rng.randrange(40)
        split, n = rng.choice(("explain", "select", "report")), rng.randrange(1, 30)
        snippets.append(Snippet(rng.randrange(4), split, text[start : start + n], peak=rng.randrange(n)))

    def contained(seen: str, held: Snippet) -> bool:
        run = held.ids[max(0, held.peak - 7) : held.peak + 1]
        other = [s.ids for s in snippets if s.split == seen and s.feature == held.feature]
        return any(run == ids[i : i + 8] for ids in other for i in range(len(ids)))

    whole = peaks_of(snippets, tmp_path / "x.duckdb")
    monkeypatch.setattr(peak_module, "_BLOCK_TOKENS", 5)
    assert peaks_of(snippets, tmp_path / "y.duckdb") == whole
    for (seen, held), (n_contained, n, _, _) in whole.items():
        asked = [s for s in snippets if s.split == held and s.peak >= 7]
        assert (n_contained, n) == (sum(contained(seen, s) for s in asked), len(asked)) and n_contained > 0


def test_a_lower_threshold_finds_more(tmp_path: Path) -> None:
    with made(tmp_path / "x.duckdb", planted()) as store:
        assert report_of(store, threshold=0.47).near[1].features == [FeatureNear(1, 5, 2)]
        assert report_of(store, threshold=0.8).near[1].n_near_own == 0
        assert report_of(store, threshold=0.6, ngram=20).near[1].n_near == 1


def test_the_special_token_in_front_is_no_overlap(tmp_path: Path) -> None:
    short = [Snippet(0, "explain", [1, 2]), Snippet(0, "report", [1, 3]), Snippet(0, "select", [])]
    with made(tmp_path / "x.duckdb", short) as store:
        assert report_of(store, threshold=0.0, ngram=1).near[1].examples == [NearPair(1, 0, 1 / 3)]
        assert report_of(store, threshold=0.0, ngram=2).near[1].n_near == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["explain", "select", "report"]), st.integers(0, 30),
                  st.integers(0, 12)),
        min_size=1, max_size=12,
    ),
    st.sampled_from([0.0, 0.4, 0.5]), st.integers(2, 40),
)  # fmt: skip
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_counts_are_those_of_brute_force(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, str, int, int]], threshold: float, block: int
) -> None:
    rng = random.Random(0)
    text = [rng.randrange(3) for _ in range(50)]
    snippets = [Snippet(f, split, text[start : start + n]) for f, split, start, n in drawn]
    path = tmp_path_factory.mktemp("drawn") / "x.duckdb"
    with pytest.MonkeyPatch.context() as patch, made(path, snippets) as store:
        patch.setattr(leakage, "_BLOCK_TOKENS", block)
        patch.setattr(leakage, "_EXPANDED", 3)
        found = report_of(store, threshold=threshold, ngram=3)
    for near in found.near:
        explain = [s for s in snippets if s.split == near.seen]
        held = [s for s in snippets if s.split == near.part]
        pairs = slow_pairs([s.ids for s in held], [s.ids for s in explain], 3, threshold)
        own = {i for i, j in pairs if held[i].feature == explain[j].feature}
        assert (near.n_contexts, near.n_near, near.n_near_own) == (len(held), len({i for i, _ in pairs}), len(own))
        assert {f.feature: f.n_near for f in near.features} == {
            f: n for f in range(3) if (n := sum(held[i].feature == f for i in own))
        }
        if pairs:
            assert near.examples[0].overlap == max(pairs.values())
    texts = {tuple(s.ids): {t.split for t in snippets if t.ids == s.ids} for s in snippets}
    assert found.n_shared_texts == sum(len(splits) > 1 for splits in texts.values())
    assert found.n_texts_in_both_parts == sum({"select", "report"} <= splits for splits in texts.values())


def test_broken_laws_are_counted(tmp_path: Path) -> None:
    leaky = [
        *apart(),
        Snippet(3, "report", apart()[0].ids),  # text of an explain context of another feature
        Snippet(2, "select", stretch(7000), "doc0"),  # a document of explain
        Snippet(2, "report", stretch(7100), "doc2"),  # a document of select
        Snippet(2, "report", apart()[2].ids),
    ]
    with made(tmp_path / "x.duckdb", leaky) as store:
        e = explanation(0)
        store.insert_explanations([e])
        store.insert_scores([score(e, predictions=[prediction(4), prediction(5)])])
        store.insert_scores([score(e, part="select", predictions=[prediction(2), prediction(3)])])
        # The store refuses to write such rows; a person with SQL can.
        store.con.execute("UPDATE predictions SET context_id = context_id - 4 WHERE context_id = 5")
        store.con.execute("UPDATE predictions SET context_id = context_id + 2 WHERE context_id = 3")
        found = report_of(store)
    assert found.broken() == [
        "2 documents with contexts in more than one split",
        "2 snippets whose text stands in more than one split",
        "1 documents that stand in both select and report",
        "1 snippets whose text stands in both select and report",
        "2 predictions made on another split than their score's part",
    ]


def test_bad_values_and_an_empty_dictionary(tmp_path: Path) -> None:
    with made(tmp_path / "x.duckdb", apart()) as store:
        for options in ({"ngram": 0}, {"threshold": 1.0}, {"threshold": -0.1}):
            with pytest.raises(InputError):
                report_of(store, **options)
        add_dictionary(store, "empty")
        with pytest.raises(InputError, match="no stored contexts"):
            check_leakage(store, store.dictionary("empty"))


def test_the_command_reports_and_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path / "x.duckdb", planted()).close()
    code, out, err = run(capsys, "verify", "--leakage-only", "--store", str(tmp_path / "x.duckdb"))
    assert code == 0, err
    assert "layer3: leakage over 16 contexts (4 explain, 5 select, 7 report): 0 documents and 0 snippets" in out
    assert "2 of 7 report contexts (28.6 %) resemble an explain context; 1 (14.3 %) one of their own" in out
    assert "report context 13 and explain context 0 overlap by 0.92" in out
    assert "features with the most of their own report contexts: 1 (1 of 5)" in out
    code, out, err = run(capsys, "verify", "--leakage-only", "--json", "--store", str(tmp_path / "x.duckdb"))
    assert code == 0, err
    (found,) = json.loads(out)
    assert (found["dictionary"], found["broken"], found["ngram"], found["threshold"]) == ("layer3", [], 8, 0.5)
    assert found["near"][1]["features"] == [{"feature": 1, "n_contexts": 5, "n_near": 1}]


def test_the_command_fails_on_a_leak_without_torch(tmp_path: Path) -> None:
    made(tmp_path / "x.duckdb", [*apart(), Snippet(0, "report", apart()[0].ids)]).close()
    done = run_without_torch("verify", "--leakage-only", "--json", "--store", str(tmp_path / "x.duckdb"))
    assert done.returncode == 1, done.stderr
    assert "1 snippets whose text stands in more than one split" in done.stderr
    assert json.loads(done.stdout)[0]["n_shared_texts"] == 1


def test_a_store_without_a_dictionary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store.open(tmp_path / "x.duckdb", create=True).close()
    code, _, err = run(capsys, "verify", "--leakage-only", "--store", str(tmp_path / "x.duckdb"))
    assert code == 2, err
