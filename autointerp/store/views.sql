-- Views of the main file. Recreated when this text changes. `evidence` must be attached while they are created (the
-- Store attaches an empty one where there is no evidence yet); opening the file later does not need it.

CREATE OR REPLACE VIEW contexts AS SELECT * FROM evidence.contexts;

CREATE OR REPLACE VIEW windows AS SELECT * FROM evidence.windows;

-- One row per feature of every dictionary, dead and failed ones included. The explainer and scorer are those chosen
-- with set_label_choice, else whatever came last. The latest row counts; a 'gave_up' row only where there is no
-- other, since it is no answer and is asked again.
CREATE OR REPLACE VIEW labels AS
WITH choice AS (
    SELECT
        dictionary_id,
        max(value) FILTER (name = 'label_explainer') AS explainer,
        max(value) FILTER (name = 'label_scorer') AS scorer
    FROM settings
    WHERE name IN ('label_explainer', 'label_scorer')
    GROUP BY dictionary_id
),
samples AS (
    -- Labels that were only chosen among: of best_of_n all but the first, which is the base explainer's own, and the
    -- rewrites of revise, which count where they became its label.
    SELECT unnest(derived_from[2:]) AS explanation_id FROM explanations WHERE explainer = 'best_of_n'
    UNION ALL
    SELECT explanation_id FROM explanations WHERE explainer = 'revise_draft'
),
latest_explanation AS (
    -- Writers give every row its own microsecond, so the key is a total order; the large constant puts gave_up last.
    SELECT
        e.dictionary_id,
        e.feature,
        arg_max(e.rowid, epoch_us(e.created_at) - if(e.status = 'gave_up', 4611686018427387904, 0)) AS row_id
    FROM explanations AS e
    LEFT JOIN choice AS c ON c.dictionary_id = e.dictionary_id
    WHERE (c.explainer IS NULL OR e.explainer = c.explainer) AND e.explanation_id NOT IN (FROM samples)
    GROUP BY e.dictionary_id, e.feature
),
explained AS (
    -- The key is that of the groups, not of `e`: so a condition on it is put to them, and not to all of the table.
    SELECT l.dictionary_id, l.feature, e.* EXCLUDE (dictionary_id, feature)
    FROM latest_explanation AS l
    JOIN explanations AS e ON e.rowid = l.row_id
),
latest_score AS (
    -- Of every label, not only of those shown: `explained` is named but once below, since what is named twice is made
    -- as a whole before a condition on the feature is looked at.
    SELECT
        s.dictionary_id,
        s.feature,
        s.explanation_id,
        arg_max(s.rowid, epoch_us(s.created_at) - if(s.status = 'gave_up', 4611686018427387904, 0)) AS row_id
    FROM scores AS s
    LEFT JOIN choice AS c ON c.dictionary_id = s.dictionary_id
    WHERE s.control IS NULL AND s.part = 'report' AND (c.scorer IS NULL OR s.scorer = c.scorer)
    GROUP BY s.dictionary_id, s.feature, s.explanation_id
)
SELECT
    f.dictionary_id,
    d.name,
    f.feature,
    e.text AS label,
    e.explainer,
    e.model,
    s.scorer,
    s.method,
    s.value AS score,
    s.ci_low,
    s.ci_high,
    s.n,
    s.n_failed,
    f.density,
    f.status,
    e.status AS explanation_status,
    s.status AS score_status,
    coalesce(e.error, s.error) AS error,
    e.explanation_id,
    s.score_id,
    e.side
FROM features AS f
JOIN dictionaries AS d ON d.dictionary_id = f.dictionary_id
LEFT JOIN explained AS e ON e.dictionary_id = f.dictionary_id AND e.feature = f.feature
LEFT JOIN latest_score AS ls
    ON ls.dictionary_id = f.dictionary_id AND ls.feature = f.feature AND ls.explanation_id = e.explanation_id
LEFT JOIN scores AS s ON s.rowid = ls.row_id;

-- Where an explainer's label of a feature became another, newest first: its rows in the order in which they were written,
-- each beside the one before it. As in `labels`, 'gave_up' is no answer; a label that was lost has the new text NULL.
CREATE OR REPLACE VIEW label_changes AS
WITH history AS (
    SELECT
        dictionary_id,
        feature,
        explainer,
        lag(text) OVER earlier AS previous_text,
        text,
        lag(model) OVER earlier AS previous_model,
        model,
        lag(template_sha256) OVER earlier AS previous_template_sha256,
        template_sha256,
        lag(harvest_id) OVER earlier AS previous_harvest_id,
        harvest_id,
        lag(status) OVER earlier AS previous_status,
        status,
        lag(created_at) OVER earlier AS previous_at,
        created_at AS changed_at,
        lag(explanation_id) OVER earlier AS previous_explanation_id,
        explanation_id
    FROM explanations
    WHERE status <> 'gave_up'
    WINDOW earlier AS (PARTITION BY dictionary_id, feature, explainer ORDER BY created_at)
)
SELECT
    h.dictionary_id,
    d.name,
    h.* EXCLUDE (dictionary_id)
FROM history AS h
JOIN dictionaries AS d ON d.dictionary_id = h.dictionary_id
WHERE h.previous_explanation_id IS NOT NULL AND h.text IS DISTINCT FROM h.previous_text
ORDER BY h.changed_at DESC;

CREATE OR REPLACE VIEW spend_by_stage AS
SELECT
    c.dictionary_id,
    d.name,
    c.stage,
    c.model,
    count(*) AS n_calls,
    count(*) FILTER (c.status <> 'ok') AS n_not_ok,
    sum(c.attempts)::BIGINT AS n_requests,
    sum(c.input_tokens)::BIGINT AS input_tokens,
    sum(c.cached_tokens)::BIGINT AS cached_tokens,
    sum(c.output_tokens)::BIGINT AS output_tokens,
    sum(c.cost_usd) AS cost_usd,
    avg(c.latency_s) AS mean_latency_s
FROM llm_calls AS c
LEFT JOIN dictionaries AS d USING (dictionary_id)
GROUP BY c.dictionary_id, d.name, c.stage, c.model
ORDER BY cost_usd DESC, n_calls DESC;

-- How much text a feature needs to fire: the tokens that pruning kept of its contexts, the peak included.
CREATE OR REPLACE VIEW context_need AS
SELECT
    dictionary_id,
    feature,
    median(len(tokens)) AS median_tokens,
    count(*) AS n
FROM pruned_contexts
WHERE status = 'ok'
GROUP BY dictionary_id, feature
ORDER BY dictionary_id, feature;

-- Mean score over features for every explainer and scorer, controls beside the real scores (control NULL); methods are
-- never averaged together. A feature with several scores of one kind counts once, by their mean. The interval is the
-- normal one, over features. Scores of a feature that read no label have no explainer.
CREATE OR REPLACE VIEW explainer_leaderboard_strata AS
WITH per_feature AS (
    SELECT
        s.dictionary_id,
        e.explainer,
        e.model,
        s.scorer,
        s.method,
        s.control,
        s.model AS scorer_model,
        s.feature,
        avg(s.value) AS value
    FROM scores AS s
    LEFT JOIN explanations AS e ON e.explanation_id = s.explanation_id
    WHERE s.part = 'report'
    GROUP BY ALL
)
SELECT
    p.dictionary_id,
    d.name,
    p.explainer,
    p.model,
    p.scorer,
    p.method,
    p.control,
    p.scorer_model,
    avg(p.value) AS mean_score,
    avg(p.value) - 1.959964 * stddev_samp(p.value) / sqrt(count(p.value)) AS ci_low,
    avg(p.value) + 1.959964 * stddev_samp(p.value) / sqrt(count(p.value)) AS ci_high,
    count(p.value) AS n,
    count(*) - count(p.value) AS n_without_score
FROM per_feature AS p
JOIN dictionaries AS d USING (dictionary_id)
GROUP BY p.dictionary_id, d.name, p.explainer, p.model, p.scorer, p.method, p.control, p.scorer_model
ORDER BY p.dictionary_id, p.scorer, p.method, p.control NULLS FIRST, mean_score DESC NULLS LAST;

-- The same without the parts of scores (sensitivity by decile, ...): records.HEADLINE_SCORERS, and of the scorers of other
-- packages whatever is not a part of another row.
CREATE OR REPLACE VIEW explainer_leaderboard AS
WITH headline AS (
    SELECT unnest([
        'simulation', 'simulation_random', 'simulation_calibrated', 'detection', 'fuzzing', 'embedding', 'surprisal',
        'generation', 'output', 'intervention', 'intruder'
    ]) AS scorer
),
part AS (
    SELECT DISTINCT one.scorer
    FROM scores AS one
    JOIN (FROM headline UNION SELECT DISTINCT scorer FROM scores) AS whole
        ON starts_with(one.scorer, whole.scorer || '_')
    WHERE one.scorer NOT IN (FROM headline)
)
SELECT *
FROM explainer_leaderboard_strata
WHERE scorer NOT IN (FROM part)
ORDER BY dictionary_id, scorer, method, control NULLS FIRST, mean_score DESC NULLS LAST;
