-- From kept_* (see unit_tables.py) to the contexts of every feature that have activations: chosen(unit, candidate,
-- split, feature, kind, rank, probability). Variables: n_top, n_sampled, sample_size.

-- A text that stands on several sides stays on the first of them, for all features alike.
CREATE OR REPLACE TEMP TABLE shared_texts AS
SELECT text_hash, min(split) AS first_split
FROM (
    SELECT DISTINCT text_hash, split FROM kept_candidates
    UNION ALL
    SELECT DISTINCT text_hash, split FROM kept_pool_tiles
)
GROUP BY text_hash
HAVING min(split) < max(split);

CREATE OR REPLACE TEMP TABLE own_lists AS
SELECT c.unit, c.candidate, c.split, c.feature, c.text_hash, c.sample_key, k.lists, k.place
FROM kept_candidates AS c
JOIN kept_lists AS k USING (unit, candidate)
LEFT JOIN shared_texts AS s USING (text_hash)
WHERE s.first_split IS NULL OR s.first_split = c.split;

-- The best context of each document first, then the best remaining texts; each text once.
CREATE OR REPLACE TEMP TABLE chosen_top AS
WITH texts AS (
    SELECT unit, candidate, split, feature, lists & 1 = 0 AS is_fill, place
    FROM own_lists
    WHERE lists & 3 <> 0
    QUALIFY row_number() OVER (PARTITION BY split, feature, text_hash ORDER BY lists & 1 = 0, place) = 1
),
best AS (
    SELECT * FROM texts
    QUALIFY row_number() OVER (PARTITION BY split, feature ORDER BY is_fill, place) <= getvariable('n_top')
)
SELECT unit, candidate, split, feature, row_number() OVER (PARTITION BY split, feature ORDER BY place) - 1 AS rank
FROM best;

-- A tile is in the sample if its key is below the first key left out: that key is the inclusion probability.
CREATE OR REPLACE TEMP TABLE chosen_sampled AS
WITH ends AS (
    SELECT split, feature, if(count(*) = getvariable('sample_size'), max(sample_key), NULL) AS last_key
    FROM kept_candidates
    WHERE lists = 4
    GROUP BY split, feature
),
ranked AS (
    SELECT unit, candidate, split, feature,
        row_number() OVER keys - 1 AS rank,
        nth_value(sample_key, getvariable('n_sampled') + 1) OVER (
            keys ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
        ) AS next_key
    FROM own_lists
    WHERE lists = 4
    WINDOW keys AS (PARTITION BY split, feature ORDER BY sample_key)
)
SELECT unit, candidate, split, feature, rank,
    coalesce((coalesce(next_key, last_key) + 0.5::DOUBLE) / 9223372036854775808::DOUBLE, 1) AS probability
FROM ranked
JOIN ends USING (split, feature)
WHERE rank < getvariable('n_sampled');

CREATE OR REPLACE TEMP TABLE chosen AS
SELECT unit, candidate, split, feature, 0 AS kind, rank, NULL::DOUBLE AS probability FROM chosen_top
UNION ALL
SELECT unit, candidate, split, feature, 1 AS kind, rank, probability FROM chosen_sampled;

CREATE OR REPLACE TEMP TABLE chosen_values AS
SELECT unit, candidate, list("position" ORDER BY "position") AS positions, list("value" ORDER BY "position") AS "values"
FROM kept_activations
SEMI JOIN chosen USING (unit, candidate)
GROUP BY unit, candidate;

-- Where a tile's maximum stands among those of all the feature's activating tiles, all splits together: linear within
-- a bin of the histogram.
CREATE OR REPLACE TEMP TABLE tile_ranks AS
SELECT b.feature, b.bin, b.n, sum(b.n) OVER (PARTITION BY b.feature ORDER BY b.bin) - b.n AS n_below,
    sum(b.n) OVER (PARTITION BY b.feature) AS n_tiles, e.low, e.high
FROM kept_tile_bins AS b
JOIN tile_edges AS e USING (bin);

CREATE OR REPLACE TEMP TABLE active_contexts AS
SELECT h.unit, c."window", h.feature, h.split, h.kind, NULL::TINYINT AS tier, h.rank, h.probability,
    least(9, floor(10 * (r.n_below + r.n * coalesce((c."value" - r.low) / (r.high - r.low), 0.5)) / r.n_tiles))::TINYINT
        AS decile,
    c."offset", c.length, c.peak, c."value", c.text_hash, v.positions, v."values"
FROM chosen AS h
JOIN kept_candidates AS c USING (unit, candidate)
JOIN chosen_values AS v USING (unit, candidate)
JOIN tile_ranks AS r ON r.feature = c.feature AND r.bin = c.tile_bin;
