-- What a label says apart from `text`, which is what judges are given: a second meaning, what the feature leads to, and
-- the share of its places that each meaning covers. And what recurs: tokens in the lists of many features, and labels
-- that many features have word for word.

ALTER TABLE explanations ADD COLUMN output_text VARCHAR;      -- what it makes the model say; NULL: not told, or none
ALTER TABLE explanations ADD COLUMN second_text VARCHAR;      -- a second meaning of the input side
ALTER TABLE explanations ADD COLUMN share DOUBLE;             -- of its active places that `text` covers, 0..1, as the LLM told
ALTER TABLE explanations ADD COLUMN second_share DOUBLE;

-- Tokens that stand in the lists of two features or more. `share` is of the features that have such a list, `by_chance`
-- the share that a token drawn at random would have: the mean length of a list by the number of tokens there are. Counted
-- once a harvest (promoted, suppressed) and once a run of token_change (raised, lowered), over all features.
CREATE TABLE recurring_tokens (
    dictionary_id INTEGER NOT NULL,
    list VARCHAR NOT NULL,              -- promoted, suppressed (vocab_projection), raised, lowered (token_changes)
    token VARCHAR NOT NULL,
    n_features BIGINT NOT NULL,
    share DOUBLE NOT NULL,
    by_chance DOUBLE NOT NULL
);

-- Labels that two features or more have word for word, by one explainer and model. `share` is of the features that these
-- have labelled. Counted at the end of `explain`.
CREATE TABLE same_labels (
    dictionary_id INTEGER NOT NULL,
    explainer VARCHAR NOT NULL,
    model VARCHAR NOT NULL,
    text VARCHAR NOT NULL,
    n_features BIGINT NOT NULL,
    share DOUBLE NOT NULL
);

INSERT INTO recurring_tokens
WITH listed AS (
    SELECT dictionary_id, feature, if(sign = 1, 'promoted', 'suppressed') AS list, token, token_id FROM vocab_projection
    UNION ALL
    SELECT dictionary_id, feature, if(sign = 1, 'raised', 'lowered') AS list, token, token_id FROM token_changes
),
features_of AS (
    SELECT dictionary_id, list, count(DISTINCT feature) AS n, count(*) / count(DISTINCT feature) AS length,
        max(max(token_id)) OVER (PARTITION BY dictionary_id, list IN ('promoted', 'suppressed')) + 1 AS n_tokens
    FROM listed GROUP BY dictionary_id, list
)
SELECT l.dictionary_id, l.list, l.token, count(DISTINCT l.feature), count(DISTINCT l.feature) / any_value(f.n),
    any_value(f.length / f.n_tokens)
FROM listed AS l
JOIN features_of AS f ON f.dictionary_id = l.dictionary_id AND f.list = l.list
GROUP BY l.dictionary_id, l.list, l.token
HAVING count(DISTINCT l.feature) > 1
ORDER BY 1, 2, 4 DESC, 3;

INSERT INTO same_labels
WITH latest AS (
    SELECT arg_max(rowid, sequence) AS row_id FROM explanations
    WHERE status = 'ok' GROUP BY dictionary_id, explainer, model, feature
),
labelled AS (
    SELECT dictionary_id, explainer, model, text,
        count(*) OVER (PARTITION BY dictionary_id, explainer, model) AS n_labelled
    FROM explanations WHERE rowid IN (SELECT row_id FROM latest)
)
SELECT dictionary_id, explainer, model, text, count(*), count(*) / any_value(n_labelled)
FROM labelled GROUP BY dictionary_id, explainer, model, text HAVING count(*) > 1
ORDER BY 1, 2, 3, 5 DESC, 4;
