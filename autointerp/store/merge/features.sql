-- One row per feature, dead ones included: new_features, in the columns of table features after harvest_id.
-- Variables: d_sae, n_tokens, n_tiles, rare_below.

CREATE OR REPLACE TEMP TABLE new_features AS
WITH whole AS (
    SELECT feature, sum(n_active_tokens)::BIGINT AS n_active_tokens, sum(n_active_tiles)::BIGINT AS n_active_tiles,
        sum(scaled_sum)::DOUBLE / 16777216 AS activation_sum, max("max") AS "max",
        max("max") FILTER (split = 0) AS explain_max,
        coalesce(sum(n_active_tiles) FILTER (split = 0), 0) AS n_explain,
        coalesce(sum(n_active_tiles) FILTER (split = 2), 0) AS n_report
    FROM kept_stats
    GROUP BY feature
),
bins AS (
    SELECT feature, min(bin) AS low, max(bin) AS high, map_from_entries(list((bin, n))) AS counts
    FROM kept_token_bins
    GROUP BY feature
),
histograms AS (
    -- bin i lies between edges i and i + 1, counted from 0; only the stretch that is not empty
    SELECT feature, (getvariable('edges'))[low + 1 : high + 2] AS edges,
        list_transform(range(low, high + 1), lambda b: coalesce(counts[b::SMALLINT], 0)::BIGINT) AS counts
    FROM bins
)
SELECT f.feature::INTEGER AS feature,
    CASE
        WHEN w.feature IS NULL THEN 'dead'
        WHEN w.n_explain < getvariable('rare_below') THEN 'rare'
        WHEN w.n_report = 0 THEN 'no_heldout'
        ELSE 'live'
    END AS status,
    coalesce(w.n_active_tiles / getvariable('n_tiles')::DOUBLE, 0) AS density,
    coalesce(w.n_active_tokens / getvariable('n_tokens')::DOUBLE, 0) AS token_density,
    coalesce(w.n_active_tiles, 0) AS n_active_tiles,
    coalesce(w.n_active_tokens, 0) AS n_active_tokens,
    coalesce(w."max"::DOUBLE, 0) AS max_activation,
    coalesce(w.activation_sum / w.n_active_tokens, 0) AS mean_activation,
    coalesce(w.explain_max::DOUBLE, 0) AS explain_max_activation,
    coalesce(h.edges, []) AS histogram_edges,
    coalesce(h.counts, []) AS histogram_counts
FROM range(getvariable('d_sae')) AS f(feature)
LEFT JOIN whole AS w ON w.feature = f.feature
LEFT JOIN histograms AS h ON h.feature = f.feature
ORDER BY f.feature;
