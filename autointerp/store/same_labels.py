"""Labels that many features have word for word: from some number on, they say nothing of any of them."""

from __future__ import annotations

from autointerp.store.connection import StoreConnection

_HELD = "FROM same_labels WHERE dictionary_id = ?"
_SAME = """
    WITH latest AS (
        SELECT arg_max(rowid, sequence) AS row_id FROM explanations
        WHERE dictionary_id = ? AND status = 'ok' GROUP BY explainer, model, feature
    ),
    labelled AS (
        SELECT dictionary_id, explainer, model, text,
            count(*) OVER (PARTITION BY explainer, model) AS n_labelled
        FROM explanations WHERE rowid IN (SELECT row_id FROM latest)
    )
    SELECT dictionary_id, explainer, model, text, count(*) AS n_features, count(*) / any_value(n_labelled) AS share
    FROM labelled GROUP BY dictionary_id, explainer, model, text HAVING count(*) > 1
"""


def count_same_labels(store: StoreConnection, dictionary_id: int) -> None:
    """Counts anew how many features have the same label, over the latest label of each feature by each explainer and
    model. What is counted is written only where it differs from what is there."""
    key = [dictionary_id]
    if store.gives_the_same(_HELD, key, f"FROM ({_SAME})", key):
        return
    with store.transaction() as con:
        con.execute(f"DELETE {_HELD}", key)
        con.execute(f"INSERT INTO same_labels {_SAME} ORDER BY explainer, model, n_features DESC, text", key)


def flagged_labels(store: StoreConnection, dictionary_id: int, explainer: str | None = None) -> dict[str, int]:
    """How many of the labels shown have each flag, all of them or those by one explainer; see `label_flag` in
    views.sql."""
    found = store.rows(
        "SELECT label_flag, count(*) FROM labels WHERE dictionary_id = ? AND label_flag IS NOT NULL "
        "AND (?::VARCHAR IS NULL OR explainer = ?) GROUP BY ALL ORDER BY ALL",
        [dictionary_id, explainer, explainer],
    )
    return dict(found)
