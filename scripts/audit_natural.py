"""Holds the scores of rule labels against the truth on the whole report split, of which every tile is encoded.

    python scripts/audit_natural.py --config autointerp-demo/autointerp.toml

For a store whose labels carry rules (by `patterns`) and that `run` has scored, such as the demo's. Prints, over the
features with a score: the mean of the natural correlation and its truth, how far single scores are off, and the share
of the intervals that hold the truth; the same for precision and recall. The correlation over the mixture of contexts
stands beside it. It needs the model and takes about a minute, plus some for the rules.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from autointerp import stats
from autointerp.config_file import load
from autointerp.model.hooks import activations_at_all
from autointerp.model.token_batches import make_batches
from autointerp.records import Window
from autointerp.rules.many_texts import ManyTexts
from autointerp.rules.patterns import Rule
from autointerp.score.natural import CLAIM
from autointerp.stages.session import Session, matching_sae
from autointerp.store import Store
from autointerp.terminal import Terminal

Floats = NDArray[np.float64]
Row = tuple[float | None, float | None, float | None]
SCORES = "simulation_natural", "simulation_precision", "simulation_recall", "simulation"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("autointerp-demo/autointerp.toml"))
    config = load(parser.parse_args().config)
    session = Session(config, Terminal())
    sae = config.sae[0]
    with Store.open(config.store.path, read_only=True) as store:
        _, weights = matching_sae(session, store, sae)
        texts, activations = encoded(session, store, sae.hookpoint, weights, config.harvest.context_tokens)
        report(store, texts, activations)


def encoded(session: Session, store: Store, hookpoint: str, weights, size: int) -> tuple[ManyTexts, Floats]:  # type: ignore[no-untyped-def]
    """(the tiles of the report split, the activations of all features on their tokens [tokens, features])."""
    rows = store.rows("SELECT token_ids, n_prefix FROM evidence.windows WHERE split = 'report'")
    windows = [Window("", 0, "report", list(ids), n_prefix) for ids, n_prefix in rows]
    loaded, text = session.model(), session.token_text()
    excluded = np.array(sorted(text.excluded_ids(session.config.corpus.exclude_tokens)), dtype=np.int64)
    of_window: dict[int, torch.Tensor] = {}
    with torch.inference_mode():
        for batch in make_batches(windows, session.config.model.batch_tokens, loaded.pad_id):
            part = batch.to(loaded.device)
            found = activations_at_all(loaded, [session.point(hookpoint)], part.ids, part.lengths)[0]
            for row, index in enumerate(part.indices):
                window = windows[index]
                dense = weights.encode_sparse(found[row, : int(part.lengths[row])]).dense(weights.d_sae).float().cpu()
                dense[np.isin(window.token_ids, excluded)] = 0
                of_window[index] = dense[window.n_prefix :]
    tiles = [tile for window in windows for tile in tiles_of(text.tokens(window.token_ids)[window.n_prefix :], size)]
    return ManyTexts(tiles), torch.cat([of_window[i] for i in range(len(windows))]).numpy()


def tiles_of(tokens: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(tokens), size):
        yield tokens[start : start + size]


def report(store: Store, texts: ManyTexts, activations: Floats) -> None:
    scores: dict[tuple[int, str], Row] = {
        (feature, scorer): (value, low, high)
        for feature, scorer, value, low, high in store.rows(
            "SELECT s.feature, s.scorer, s.value, s.ci_low, s.ci_high FROM scores s "
            "JOIN labels l USING (feature, explanation_id) "
            "WHERE s.part = 'report' AND s.control IS NULL AND s.status = 'ok'"
        )
    }
    rules = store.rows(
        "SELECT e.feature, e.rule, f.explain_max_activation FROM explanations e "
        "JOIN labels l USING (feature, explanation_id) JOIN features f USING (feature) WHERE e.rule IS NOT NULL"
    )
    pairs: dict[str, list[tuple[float, Row]]] = {name: [] for name in SCORES}
    for feature, rule, top in rules:
        true = truth_of(texts, activations[:, feature], Rule.from_json(rule), top)
        for name, value in zip(SCORES, (*true, true[0]), strict=True):
            if (feature, name) in scores and not np.isnan(value):
                pairs[name].append((value, scores[feature, name]))
    print("| score | features | mean | truth | mean error | rank correlation | intervals | that hold the truth |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, some in pairs.items():
        print(line(name, some))


def truth_of(texts: ManyTexts, true: Floats, rule: Rule, top: float) -> tuple[float, float, float]:
    """(correlation, precision, recall) over all tiles."""
    predicted = texts.predict(rule)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.corrcoef(10 * true / top, predicted)[0, 1]
        fires, claimed = texts.peaks(true) > 0, texts.peaks(predicted) >= CLAIM
        hits = (fires & claimed).sum()
        return float(correlation), float(hits / claimed.sum()), float(hits / fires.sum())


def line(name: str, some: list[tuple[float, Row]]) -> str:
    truth, values = np.array([t for t, _ in some]), np.array([row[0] for _, row in some], dtype=np.float64)
    with_ends = [(t, low, high) for t, (_, low, high) in some if low is not None and high is not None]
    held = np.mean([low <= t <= high for t, low, high in with_ends]) if with_ends else np.nan
    ranks = stats.spearman(truth, values)
    return (
        f"| {name} | {len(some)} | {values.mean():.3f} | {truth.mean():.3f} | {np.abs(values - truth).mean():.3f} "
        f"| {math.nan if ranks is None else ranks:.2f} | {len(with_ends)} | {held:.3f} |"
    )


if __name__ == "__main__":
    main()
