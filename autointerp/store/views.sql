-- Views of the main file. Recreated when this text changes. `evidence` must be attached while they are created (the
-- Store attaches an empty one where there is no evidence yet); opening the file later does not need it.

CREATE OR REPLACE VIEW contexts AS SELECT * FROM evidence.contexts;

CREATE OR REPLACE VIEW windows AS SELECT * FROM evidence.windows;

-- One row per feature of every dictionary, dead and failed ones included. The explainer and scorer are those chosen
-- with set_label_choice, else whatever came last. The latest row counts; a 'gave_up' row only where there is no
-- other, since it is no answer and is asked again. `score` is of text as it comes where the scorer predicts activations
-- (simulation_natural); `precision` and `recall` are of that text too. Where no false alarm was seen, `precision` is NULL
-- and only its lower end is known, the upper one being 1. `beats_lookup` and `beats_neighbour`: whether the label scores
-- better than the list of the feature's tokens and than the nearest feature's label (see label_controls); NULL where that
-- was not tested.
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
    -- Every row has a number of its own, so the key is a total order; the large constant puts gave_up last.
    SELECT
        e.dictionary_id,
        e.feature,
        arg_max(e.rowid, e.sequence - if(e.status = 'gave_up', 4611686018427387904, 0)) AS row_id
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
        arg_max(s.rowid, s.sequence - if(s.status = 'gave_up', 4611686018427387904, 0)) AS row_id
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
    coalesce(n.scorer, s.scorer) AS scorer,
    s.method,
    if(n.score_id IS NULL, s.value, n.value) AS score,
    if(n.score_id IS NULL, s.ci_low, n.ci_low) AS ci_low,
    if(n.score_id IS NULL, s.ci_high, n.ci_high) AS ci_high,
    coalesce(n.n, s.n) AS n,
    coalesce(n.n_failed, s.n_failed) AS n_failed,
    f.density,
    f.status,
    e.status AS explanation_status,
    coalesce(n.status, s.status) AS score_status,
    coalesce(e.error, n.error, s.error) AS error,
    e.explanation_id,
    coalesce(n.score_id, s.score_id) AS score_id,
    e.side,
    p.value AS precision,
    p.ci_low AS precision_low,
    p.ci_high AS precision_high,
    r.value AS recall,
    r.ci_low AS recall_low,
    r.ci_high AS recall_high,
    -- Of the headline row. Without `label_from`, `from_status` says why; `from_precision` as `precision`.
    if(n.score_id IS NULL, s.label_from, n.label_from) AS label_from,
    if(n.score_id IS NULL, s.from_status, n.from_status) AS from_status,
    1 - if(n.score_id IS NULL, s.from_share, n.from_share) AS from_quantile,
    if(n.score_id IS NULL, s.from_share, n.from_share) AS from_share,
    if(n.score_id IS NULL, s.from_mass, n.from_mass) AS from_mass,
    if(n.score_id IS NULL, s.from_precision, n.from_precision) AS from_precision,
    if(n.score_id IS NULL, s.from_precision_low, n.from_precision_low) AS from_precision_low,
    if(n.score_id IS NULL, s.from_precision_high, n.from_precision_high) AS from_precision_high,
    if(n.score_id IS NULL, s.from_recall, n.from_recall) AS from_recall,
    if(n.score_id IS NULL, s.from_recall_low, n.from_recall_low) AS from_recall_low,
    if(n.score_id IS NULL, s.from_recall_high, n.from_recall_high) AS from_recall_high,
    if(n.score_id IS NULL, s.from_n, n.from_n) AS from_n,
    if(n.score_id IS NULL, s.from_floor, n.from_floor) AS from_floor,
    e.second_text AS second_label,
    e.output_text AS output_label,
    e.share AS label_share,
    e.second_share,
    if(e.text IS NULL, NULL, coalesce(same.n_features, 1)) AS n_same_label,
    -- What many features have word for word says nothing of any of them. In a large dictionary 1 % are hundreds, so
    -- some number of them is enough. Rules may repeat honestly.
    if(
        same.n_features >= 5 AND (same.share >= 0.01 OR same.n_features >= 20)
        AND e.rule IS NULL AND e.model NOT IN (e.explainer, 'shape'),
        'repeated', NULL
    ) AS label_flag,
    bl.beats AS beats_lookup,
    bn.beats AS beats_neighbour
FROM features AS f
JOIN dictionaries AS d ON d.dictionary_id = f.dictionary_id
LEFT JOIN explained AS e ON e.dictionary_id = f.dictionary_id AND e.feature = f.feature
LEFT JOIN same_labels AS same
    ON same.dictionary_id = f.dictionary_id AND same.explainer = e.explainer AND same.model = e.model
    AND same.text = e.text
LEFT JOIN latest_score AS ls
    ON ls.dictionary_id = f.dictionary_id AND ls.feature = f.feature AND ls.explanation_id = e.explanation_id
LEFT JOIN scores AS s ON s.rowid = ls.row_id
-- What the label says of text as it comes stands in the place of `simulation`, whose mixture of contexts flatters it.
LEFT JOIN scores AS n
    ON n.dictionary_id = s.dictionary_id AND n.feature = s.feature AND n.explanation_id = s.explanation_id
    AND s.scorer = 'simulation' AND n.scorer = 'simulation_natural' AND n.control IS NULL AND n.part = s.part
    AND n.method = s.method AND n.model = s.model AND n.template_sha256 = s.template_sha256 AND n.seed = s.seed
    AND n.harvest_id = s.harvest_id
LEFT JOIN scores AS p
    ON p.dictionary_id = s.dictionary_id AND p.feature = s.feature AND p.explanation_id = s.explanation_id
    AND p.scorer = s.scorer || '_precision' AND p.control IS NULL AND p.part = s.part
    AND p.method = s.method AND p.model = s.model AND p.template_sha256 = s.template_sha256 AND p.seed = s.seed
    AND p.harvest_id = s.harvest_id
LEFT JOIN scores AS r
    ON r.dictionary_id = s.dictionary_id AND r.feature = s.feature AND r.explanation_id = s.explanation_id
    AND r.scorer = if(s.scorer = 'simulation', 'simulation_recall', s.scorer || '_sensitivity')
    AND r.control IS NULL AND r.part = s.part
    AND r.method = s.method AND r.model = s.model AND r.template_sha256 = s.template_sha256 AND r.seed = s.seed
    AND r.harvest_id = s.harvest_id
LEFT JOIN label_controls AS bl
    ON bl.dictionary_id = f.dictionary_id AND bl.feature = f.feature AND bl.control = 'token_lookup'
    AND bl.score_id = coalesce(n.score_id, s.score_id)
LEFT JOIN label_controls AS bn
    ON bn.dictionary_id = f.dictionary_id AND bn.feature = f.feature AND bn.control = 'neighbour_label'
    AND bn.score_id = coalesce(n.score_id, s.score_id);

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
        explanation_id,
        sequence
    FROM explanations
    WHERE status <> 'gave_up'
    WINDOW earlier AS (PARTITION BY dictionary_id, feature, explainer ORDER BY sequence)
)
SELECT
    h.dictionary_id,
    d.name,
    h.* EXCLUDE (dictionary_id, sequence)
FROM history AS h
JOIN dictionaries AS d ON d.dictionary_id = h.dictionary_id
WHERE h.previous_explanation_id IS NOT NULL AND h.text IS DISTINCT FROM h.previous_text
ORDER BY h.sequence DESC;

-- How consistent each judge is, from labels that it was asked about twice (judge_repeats). `correlation` is that of its
-- errors about two contexts of one call: the mean product of the errors of such pairs, less that of pairs of two calls,
-- over the variance. The interval is a jackknife over labels with Student's t; there is none below 20 labels.
CREATE OR REPLACE VIEW judge_consistency AS
WITH per_label AS (
    SELECT
        dictionary_id,
        scorer,
        model,
        template_sha256,
        explanation_id,
        sum(n_twice) AS n_twice,
        sum(n_agreed) AS n_agreed,
        sum(n_answers)::DOUBLE AS n,
        sum(square_sum) AS s,
        sum(n_within)::DOUBLE AS nw,
        sum(within_sum) AS w,
        sum(n_between)::DOUBLE AS nb,
        sum(between_sum) AS b
    FROM judge_repeats
    GROUP BY ALL
),
whole AS (
    SELECT
        dictionary_id,
        scorer,
        model,
        template_sha256,
        count(*) AS n_labels,
        sum(n_twice)::BIGINT AS n_twice,
        sum(n_agreed) / nullif(sum(n_twice), 0) AS agreement,
        sum(nw)::BIGINT AS n_pairs,
        sum(n) AS n,
        sum(s) AS s,
        sum(nw) AS nw,
        sum(w) AS w,
        sum(nb) AS nb,
        sum(b) AS b
    FROM per_label
    GROUP BY ALL
),
left_out AS (
    SELECT
        p.dictionary_id,
        p.scorer,
        p.model,
        p.template_sha256,
        ((t.w - p.w) / nullif(t.nw - p.nw, 0) - (t.b - p.b) / nullif(t.nb - p.nb, 0))
        / nullif((t.s - p.s) / nullif(t.n - p.n, 0) - (t.b - p.b) / nullif(t.nb - p.nb, 0), 0) AS value
    FROM per_label AS p
    JOIN whole AS t USING (dictionary_id, scorer, model, template_sha256)
),
errors AS (
    SELECT
        dictionary_id,
        scorer,
        model,
        template_sha256,
        if(count(value) = count(*) AND count(*) >= 20, sqrt(var_pop(value) * (count(*) - 1)), NULL) AS error,
        1.959964 + 2.372271 / (count(*) - 1) + 2.822499 / (count(*) - 1) ** 2 AS point
    FROM left_out
    GROUP BY ALL
    HAVING count(*) > 1
),
correlations AS (
    SELECT *, (w / nullif(nw, 0) - b / nullif(nb, 0)) / nullif(s / nullif(n, 0) - b / nullif(nb, 0), 0) AS correlation
    FROM whole
)
SELECT
    c.dictionary_id,
    d.name,
    c.scorer,
    c.model,
    c.template_sha256,
    c.n_labels,
    c.n_twice AS n_contexts,
    c.agreement,
    c.n_pairs,
    c.correlation,
    c.correlation - e.point * e.error AS ci_low,
    c.correlation + e.point * e.error AS ci_high
FROM correlations AS c
LEFT JOIN errors AS e USING (dictionary_id, scorer, model, template_sha256)
LEFT JOIN dictionaries AS d ON d.dictionary_id = c.dictionary_id
ORDER BY c.dictionary_id, c.scorer, c.model, c.template_sha256;

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
-- never averaged together. A feature with several scores of one kind counts once, by their mean. Scores of a feature that
-- read no label have no explainer.
--
-- Many features are scored on the same documents, so their errors go together. se_features is the standard error as if
-- they did not, se_both the one by features and documents (means.feature_mean says how): the interval is Student's, by
-- se_both where it is known, and there is none where the features share fewer than 10 documents. The influences of
-- silent documents are summed up over a few groups (prevalence.silent_group): those are terms of the variance, but no
-- documents. Two scores of one feature count as two features in the shared part, which is then a little too large.
--
-- Beside a control, share_better is the share of the n_tested features whose label scores better than the control in a
-- test of that feature, and share_worse of those whose label scores worse (see label_controls).
CREATE OR REPLACE VIEW explainer_leaderboard_strata AS
WITH each_score AS (
    SELECT
        s.dictionary_id,
        e.explainer,
        e.model,
        s.scorer,
        s.method,
        s.control,
        s.model AS scorer_model,
        s.feature,
        s.value,
        s.documents,
        s.influences
    FROM scores AS s
    LEFT JOIN explanations AS e ON e.explanation_id = s.explanation_id
    WHERE s.part = 'report'
),
per_feature AS (
    SELECT
        * EXCLUDE (value, documents, influences),
        avg(value) AS value,
        count(value) AS n_scores,
        count(value) > 0 AND count(influences) = count(value) AS is_known
    FROM each_score
    GROUP BY ALL
),
means AS (
    SELECT
        * EXCLUDE (feature, value, n_scores, is_known),
        avg(value) AS mean_score,
        count(value) AS n,
        count(*) - count(value) AS n_without_score,
        count(*) FILTER (is_known) AS n_known,
        stddev_samp(value) / sqrt(count(value)) AS se_features
    FROM per_feature
    GROUP BY ALL
),
per_document AS (
    SELECT
        * EXCLUDE (moved),
        sum(moved) AS total,
        sum(moved * moved) AS own
    FROM (
        SELECT
            s.dictionary_id, s.explainer, s.model, s.scorer, s.method, s.control, s.scorer_model,
            unnest(s.documents) AS document, unnest(s.influences) / f.n_scores AS moved
        FROM each_score AS s
        JOIN per_feature AS f
            ON f.dictionary_id = s.dictionary_id AND f.feature = s.feature AND f.scorer = s.scorer
            AND f.method = s.method AND f.scorer_model = s.scorer_model
            AND f.explainer IS NOT DISTINCT FROM s.explainer AND f.model IS NOT DISTINCT FROM s.model
            AND f.control IS NOT DISTINCT FROM s.control
        WHERE f.is_known AND s.value IS NOT NULL
    )
    GROUP BY ALL
),
shared AS (
    SELECT
        * EXCLUDE (document, total, own),
        count(*) AS n_terms,
        count(*) FILTER (document NOT SIMILAR TO '<silent documents [0-9]+>') AS n_documents,
        sum(total * total) AS squares,
        sum(total * total * total * total) AS fourths,
        sum(own) AS own
    FROM per_document
    GROUP BY ALL
),
-- The degrees of freedom of a variance over documents, as means.shared_freedom gives them.
errors AS (
    SELECT
        m.*,
        h.n_documents,
        if(h.n_documents IS NULL, NULL, greatest(0, h.squares - h.own) / (m.n_known * m.n_known)) AS between_features,
        least(greatest(2 * h.n_terms / greatest(
            h.n_terms * h.fourths / nullif(h.squares * h.squares, 0) - 1, 1e-9
        ), 1), greatest(1, h.n_documents - 1)) AS freedom
    FROM means AS m
    LEFT JOIN shared AS h
        ON 2 * m.n_known >= m.n AND h.dictionary_id = m.dictionary_id AND h.scorer = m.scorer AND h.method = m.method
        AND h.scorer_model = m.scorer_model AND h.explainer IS NOT DISTINCT FROM m.explainer
        AND h.model IS NOT DISTINCT FROM m.model AND h.control IS NOT DISTINCT FROM m.control
),
both_errors AS (
    SELECT
        *,
        sqrt(se_features * se_features + between_features) AS se_both,
        greatest(1, coalesce(
            (se_features * se_features + between_features) ** 2
            / nullif(se_features ** 4 / (n - 1) + between_features ** 2 / freedom, 0),
            n - 1
        )) AS t_freedom
    FROM errors
),
-- The 97.5 % point of Student's t, as means.t_point gives it; between two whole degrees of freedom, that of the lower.
halves AS (
    SELECT
        *,
        CASE
            WHEN n < 2 OR n_documents < 10 THEN NULL
            WHEN t_freedom < 30 THEN list_extract([
                12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
                2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045
            ], floor(t_freedom)::INTEGER)
            ELSE 1.959964 + 2.372271 / t_freedom + 2.822499 / t_freedom ** 2
        END * coalesce(se_both, se_features) AS half
    FROM both_errors
),
tested AS (
    SELECT
        dictionary_id, explainer, model, scorer, method, scorer_model, control,
        count(beats) AS n_tested,
        count(*) FILTER (beats) / nullif(count(beats), 0) AS share_better,
        count(*) FILTER (q_value < 0.05 AND difference < 0) / nullif(count(beats), 0) AS share_worse
    FROM label_controls
    GROUP BY ALL
)
SELECT
    h.dictionary_id,
    d.name,
    h.explainer,
    h.model,
    h.scorer,
    h.method,
    h.control,
    h.scorer_model,
    h.mean_score,
    h.mean_score - h.half AS ci_low,
    h.mean_score + h.half AS ci_high,
    h.n,
    h.n_without_score,
    h.se_features,
    h.se_both,
    h.n_documents,
    t.n_tested,
    t.share_better,
    t.share_worse
FROM halves AS h
JOIN dictionaries AS d USING (dictionary_id)
LEFT JOIN tested AS t
    ON t.dictionary_id = h.dictionary_id AND t.explainer = h.explainer AND t.model = h.model AND t.scorer = h.scorer
    AND t.method = h.method AND t.scorer_model = h.scorer_model AND t.control = h.control
ORDER BY h.dictionary_id, h.scorer, h.method, h.control NULLS FIRST, h.mean_score DESC NULLS LAST;

-- The same without the parts of scores (sensitivity by decile, ...): scorer_names.HEADLINE_SCORERS, and of the scorers
-- of other packages whatever is not a part of another row.
CREATE OR REPLACE VIEW explainer_leaderboard AS
WITH headline AS (
    SELECT unnest([
        'simulation_natural', 'simulation', 'simulation_random', 'simulation_calibrated', 'detection', 'fuzzing',
        'embedding', 'surprisal', 'generation', 'output', 'intervention', 'intruder', 'rule_agreement'
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
