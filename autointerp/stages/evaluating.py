"""The stage that measures how good a dictionary is: it writes structural and functional metrics to the store, and a
report.

On the dictionary's own corpus only the `report` split is read, which `train` leaves out: on text that it was trained on
a dictionary reconstructs better than on any other. Every row says whether training had read its text.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autointerp.config import CorpusConfig, SaeConfig
from autointerp.corpus.corpus_report import CorpusReport
from autointerp.evaluate.absorption import absorption
from autointerp.evaluate.html_report import MOST_HISTOGRAMS, DictionaryReport, ReportData, write_report
from autointerp.evaluate.labelled_texts import LabelledTexts, read_labelled
from autointerp.evaluate.probing import k_sparse_probing, token_probing
from autointerp.evaluate.robustness import robustness
from autointerp.evaluate.stability import stability
from autointerp.evaluate.structural import SUSPICIOUS_FVU, StructuralResult, evaluate_structure
from autointerp.records import Split, WorkUnit
from autointerp.sae.sae import Sae
from autointerp.stages.checks import require
from autointerp.stages.evaluate_options import EvaluateOptions
from autointerp.stages.model_checks import model_checks
from autointerp.stages.session import Session, dictionary_id_of, held_out_from_training, loaded_sae
from autointerp.store.store import Store

ROBUSTNESS_TEXTS = 200
SHOWN = (
    "fvu", "explained_variance", "cosine", "relative_bias", "l0", "dead_fraction", "dense_fraction",
    "decoder_redundant_fraction", "delta_ce", "loss_recovered_zero", "loss_recovered_mean", "kl_sae",
)  # fmt: skip
"""The structural metrics that the terminal shows, for all splits together. The store has all metrics."""

Row = Mapping[str, Any]


@dataclass(slots=True)
class _Evaluated:
    sae: SaeConfig
    weights: Sae
    dictionary_id: int
    rows: list[dict[str, Any]]
    result: StructuralResult


def evaluate(session: Session, store: Store, saes: Sequence[SaeConfig], options: EvaluateOptions) -> list[Row]:
    """Evaluate each of `saes`. Returns the rows written to sae_metrics, with the names of dictionary and corpus."""
    probes = [(path, read_labelled(path)) for path in options.probes]  # first, so that a bad file is refused at once
    require(model_checks(session, saes, store))
    done = [_evaluate_one(session, store, sae, options, probes) for sae in saes]
    if not options.is_structural_only:
        _add_stability(session, done)
    written: list[Row] = []
    for one in done:
        store.insert_metrics(one.dictionary_id, one.rows)
        written += [{"dictionary": one.sae.dictionary, **row} for row in one.rows]
        _show(session, one)
    if options.report is not None:
        _write_report(session, store, done, options)
        session.terminal.say(f"wrote {options.report}")
    return written


def _evaluate_one(
    session: Session, store: Store, sae: SaeConfig, options: EvaluateOptions, probes: Sequence[tuple[Path, Any]]
) -> _Evaluated:
    weights, sha256 = loaded_sae(session, sae)
    dictionary_id = dictionary_id_of(session, store, sae, weights, sha256)
    own = session.config.corpus
    result = _structural(session, sae, weights, own, options, split="report")
    rows = _structural_rows(result, _own_corpus(store, dictionary_id), own.source, _seen_in_training(session, sae))
    fvu = result.early_fvu
    if not sae.path and fvu is not None and not fvu <= SUSPICIOUS_FVU:  # fit_check.py looks at the others
        session.terminal.warn(
            f"{sae.dictionary}: {fvu:.2f} of the variance is left unexplained; it was probably trained with another "
            "model, hookpoint or input scaling"
        )
    for source in options.corpora:
        other, report = replace(own, source=source, format="auto"), CorpusReport()
        found = _structural(session, sae, weights, other, options, report)
        corpus_id = store.add_corpus(
            source, asdict(other), session.model().tokenizer_sha256, report.n_documents, found.n_tokens
        )
        rows += _structural_rows(found, corpus_id, source, "another corpus")
    if not options.is_structural_only:
        rows += _functional(session, sae, weights, probes)
    return _Evaluated(sae, weights, dictionary_id, rows, result)


def _own_corpus(store: Store, dictionary_id: int) -> int | None:
    """The id of the corpus on which the dictionary was harvested; None before a harvest."""
    current = store.current_harvest(dictionary_id)
    return next((h.corpus_id for h in store.harvests(dictionary_id) if h.harvest_id == current), None)


def _structural(
    session: Session, sae: SaeConfig, weights: Sae, corpus: CorpusConfig, options: EvaluateOptions,
    report: CorpusReport | None = None, split: Split | None = None,
) -> StructuralResult:  # fmt: skip
    """Measures on `corpus`, or on one split of it."""
    loaded, (point, output) = session.model(), session.points(sae)
    excluded = session.token_text().excluded_ids(corpus.exclude_tokens)
    units: Iterator[WorkUnit] = session.units(corpus, report)
    if split is not None:
        units = (replace(unit, windows=[w for w in unit.windows if w.split == split]) for unit in units)
    splice_tokens = 0 if loaded.looks_ahead else options.splice_tokens
    if splice_tokens < options.splice_tokens:
        session.terminal.warn(
            f"{sae.dictionary}: no loss is measured, since model {loaded.name} sees the token it should predict"
        )
    with session.terminal.progress(f"{sae.dictionary}: evaluating on {corpus.source}", options.tokens, "tokens") as to:
        return evaluate_structure(
            loaded, weights, point, output, units, excluded, session.config.model.batch_tokens,
            max_tokens=options.tokens, splice_tokens=splice_tokens, seed=session.config.harvest.seed,
            on_progress=lambda n, note: to(n, note=note),
        )  # fmt: skip


def _structural_rows(result: StructuralResult, corpus_id: int | None, source: str, note: str) -> list[dict[str, Any]]:
    return [
        {
            **asdict(metric), "n": metric.n_documents, "unit": "documents", "corpus_id": corpus_id, "corpus": source,
            "note": note,
        }
        for metric in result.metrics
    ]  # fmt: skip


def _seen_in_training(session: Session, sae: SaeConfig) -> str:
    """What is known of whether the SAE was trained on the report split."""
    if sae.path:
        return "report text; whether training read it is not known"
    if held_out_from_training(session.sae_folder(sae)):
        return "report text, held out from training"
    return "in-sample: training read this text"


def _functional(
    session: Session, sae: SaeConfig, weights: Sae, probes: Sequence[tuple[Path, Any]]
) -> list[dict[str, Any]]:
    loaded, corpus, (point, _) = session.model(), session.config.corpus, session.points(sae)
    seed = session.config.harvest.seed
    counting = session.terminal.counting(sae.dictionary)
    session.terminal.say(f"{sae.dictionary}: robustness and absorption")
    texts = list(itertools.islice(_report_texts(session), ROBUSTNESS_TEXTS))
    rows: list[Any] = []
    rows += robustness(loaded, weights, point, texts, corpus=corpus, seed=seed, split="report", counting=counting)
    rows += absorption(loaded, weights, point, corpus=corpus, seed=seed, counting=counting)
    for path, labelled in probes:
        session.terminal.say(f"{sae.dictionary}: probing {path.name}")
        if isinstance(labelled, LabelledTexts):
            rows += k_sparse_probing(
                loaded, weights, point, labelled.texts, labelled.labels, name=f"probing_{path.stem}", corpus=corpus,
                seed=seed, counting=counting,
            )  # fmt: skip
        else:
            rows += token_probing(
                loaded, weights, point, labelled.sentences, labelled.tags, name=f"token_probing_{path.stem}",
                corpus=corpus, seed=seed, counting=counting,
            )  # fmt: skip
    return [dict(row) for row in rows]


def _report_texts(session: Session) -> Iterator[str]:
    """One window's text from each held-out document, as the model saw it."""
    text = session.token_text()
    seen: set[str] = set()
    for unit in session.units():
        for window in unit.windows:
            if window.split == "report" and window.document not in seen:
                seen.add(window.document)
                yield "".join(text.tokens(window.token_ids[window.n_prefix :]))


def _add_stability(session: Session, done: Sequence[_Evaluated]) -> None:
    """Compare dictionaries of the same hookpoint. The rows go to the first dictionary of each group."""

    def place(one: _Evaluated) -> tuple[str, ...]:
        return tuple(str(point) for point in session.points(one.sae))

    for _, members in itertools.groupby(sorted(done, key=place), key=place):
        group = list(members)
        if len(group) < 2:
            continue
        decoders = [one.weights.W_dec[torch.from_numpy(one.result.density > 0)].cpu() for one in group]
        if min(map(len, decoders)) == 0:
            continue
        for i, j in itertools.combinations(range(len(group)), 2):
            rows = stability([decoders[i], decoders[j]], session.config.harvest.seed)
            group[i].rows += [{**row, "metric": f"{row['metric']} [{group[j].sae.dictionary}]"} for row in rows]


def _show(session: Session, one: _Evaluated) -> None:
    structural = {row["metric"]: row for row in one.rows if row.get("split") is None and "corpus" in row}
    sources = list(dict.fromkeys(row["corpus"] for row in one.rows if "corpus" in row))
    listed = []
    for source in sources:
        found = {r["metric"]: r for r in one.rows if r.get("corpus") == source and r["split"] is None}
        listed += [_cells(found[name], Path(source).name or source) for name in SHOWN if name in found]
    listed += [_cells(row, "") for row in one.rows if "corpus" not in row]
    columns = ("metric", "value", "ci_low", "ci_high", "n", "on", "remark")
    session.terminal.table(columns, listed, f"{one.sae.dictionary}: {len(structural)} structural metrics and more")


def _cells(row: Row, corpus: str) -> tuple[Any, ...]:
    n = "" if row.get("n") is None else f"{row['n']:,} {row.get('unit') or ''}".strip()
    return row["metric"], row["value"], row["ci_low"], row["ci_high"], n, corpus, row.get("note", "")


def _write_report(session: Session, store: Store, done: Sequence[_Evaluated], options: EvaluateOptions) -> None:
    assert options.report is not None
    loaded, corpus = session.model(), session.config.corpus
    pages = []
    for one in done:
        rows = [{**r, "metric": _with_corpus(r, corpus.source)} for r in one.rows]
        pages.append(
            DictionaryReport(
                name=one.sae.dictionary,
                architecture=one.weights.architecture,
                d_sae=one.weights.d_sae,
                metrics=rows,
                densities=np.asarray(one.result.density).tolist(),
                curves=store.training_curves(one.dictionary_id),
                histograms=store.activation_histograms(one.dictionary_id, MOST_HISTOGRAMS),
            )
        )
    facts = {"model": loaded.name, "corpus": corpus.source, "tokens": f"{done[0].result.n_tokens:,}" if done else "0"}
    write_report(options.report, ReportData("How good are these dictionaries?", pages, facts))


def _with_corpus(row: Row, own: str) -> str:
    """The row's metric, with the corpus's name added if it is not the dictionary's own corpus."""
    other = row.get("corpus", own)
    return str(row["metric"]) if other == own else f"{row['metric']} on {Path(other).name}"
