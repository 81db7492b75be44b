-- Tiles in which a feature is silent. Three tiers: 0 same_token (the tile holds the feature's top token), 1 neighbour
-- (one of its nearest features is active there), 2 random. Draws come from candidate lists bounded per token,
-- per neighbour and per feature. Every feature takes the candidates in an order of its own: features share tokens and
-- neighbours, and in one order for all the same tiles would stand in the evidence of most of them.
-- Variables: n_negatives, per_token, per_neighbour.

-- The token at the peak of most of the feature's top contexts on the explain split, weighted by activation. Weights are
-- whole numbers, so that their sum has no order.
CREATE OR REPLACE TEMP TABLE top_tokens AS
SELECT feature, token_id
FROM (
    SELECT c.feature, w.token_ids[c.peak + 1] AS token_id, sum(round(c."value"::DOUBLE * 16777216)::HUGEINT) AS weight
    FROM active_contexts AS c
    JOIN kept_windows AS w USING (unit, "window")
    WHERE c.kind = 0 AND c.split = 0
    GROUP BY ALL
)
QUALIFY row_number() OVER (PARTITION BY feature ORDER BY weight DESC, token_id) = 1;

CREATE OR REPLACE TEMP TABLE tile_tokens AS
WITH held AS (
    SELECT DISTINCT t.split, t.tile_id, unnest(w.token_ids[t."offset" + 1 : t."offset" + t.length]) AS token_id
    FROM tiles AS t
    JOIN kept_windows AS w USING (unit, "window")
)
SELECT split, token_id, tile_id
FROM held
SEMI JOIN (SELECT DISTINCT token_id FROM top_tokens) USING (token_id)
QUALIFY row_number() OVER (
    PARTITION BY split, token_id ORDER BY (tile_id + 1) * (token_id * 48271::BIGINT % 2147483646 + 1) % 2147483647
) <= getvariable('per_token');

-- A feature's active tiles, a bounded number: of some groups of 64 tiles, each feature's in an order of its own.
CREATE OR REPLACE TEMP TABLE tile_groups AS
SELECT unit, split, address >> 6 AS tile_group, min(tile_id) AS first_tile
FROM tiles
GROUP BY ALL;

CREATE OR REPLACE TEMP TABLE active_tiles AS
WITH masks AS (
    SELECT p.split, p.feature, p.unit, p.tile_group, p.mask,
        sum(bit_count(p.mask)) OVER (
            PARTITION BY p.split, p.feature ORDER BY (g.first_tile + 1) * o.factor % 2147483647
            ROWS UNBOUNDED PRECEDING
        ) - bit_count(p.mask) AS n_before
    FROM kept_pool AS p
    JOIN draw_orders AS o USING (feature, split)
    JOIN tile_groups AS g USING (unit, split, tile_group)
    SEMI JOIN neighbours AS n ON n.neighbour = p.feature
),
bits AS (
    SELECT split, feature, unit, tile_group * 64 + b.bit AS address
    FROM masks
    JOIN range(64) AS b(bit) ON (mask >> b.bit) & 1 = 1
    WHERE n_before < getvariable('per_neighbour')
)
SELECT b.split, b.feature, t.tile_id
FROM bits AS b
JOIN draw_orders AS o USING (feature, split)
JOIN tiles AS t USING (split, unit, address)
QUALIFY row_number() OVER (
    PARTITION BY b.split, b.feature ORDER BY (t.tile_id + 1) * o.factor % 2147483647
) <= getvariable('per_neighbour');

CREATE OR REPLACE TEMP TABLE drawn AS
SELECT a.feature, a.split, 0::TINYINT AS tier, k.tile_id, (k.tile_id + 1) * o.factor % 2147483647 AS turn
FROM alive AS a
JOIN draw_orders AS o USING (feature, split)
JOIN top_tokens AS t USING (feature)
JOIN tile_tokens AS k ON k.split = a.split AND k.token_id = t.token_id
UNION ALL
SELECT a.feature, a.split, 1::TINYINT AS tier, k.tile_id, (k.tile_id + 1) * o.factor % 2147483647 AS turn
FROM alive AS a
JOIN draw_orders AS o USING (feature, split)
JOIN neighbours AS n USING (feature)
JOIN active_tiles AS k ON k.split = a.split AND k.feature = n.neighbour
UNION ALL
SELECT r.feature, r.split, 2::TINYINT AS tier, r.tile_id, r.turn FROM random_tiles AS r;

CREATE OR REPLACE TEMP TABLE negative_contexts AS
WITH silent AS (
    SELECT d.feature, d.split, d.tier, d.turn, t.unit, t."window", t."offset", t.length, t.text_hash, t.tile_id
    FROM drawn AS d
    JOIN tiles AS t USING (split, tile_id)
    LEFT JOIN kept_pool AS p
        ON p.unit = t.unit AND p.split = t.split AND p.tile_group = t.address >> 6 AND p.feature = d.feature
    WHERE p.mask IS NULL OR (p.mask >> (t.address & 63)) & 1 = 0
),
-- The random ones are taken first, and all others from what is left: without the tiles of the other tiers they would
-- not be a uniform sample of the silent tiles, and a label's false alarms would be too few.
distinct_texts AS (
    SELECT * FROM silent
    ANTI JOIN active_contexts USING (feature, split, text_hash)
    QUALIFY row_number() OVER (PARTITION BY feature, split, tier, text_hash ORDER BY turn, tile_id) = 1
),
first_of_tier AS (
    SELECT *, row_number() OVER (PARTITION BY feature, split, tier ORDER BY turn, tile_id) AS place FROM distinct_texts
),
once AS (
    SELECT * FROM first_of_tier
    WHERE tier <> 2 OR place <= getvariable('n_negatives')
    QUALIFY row_number() OVER (PARTITION BY feature, split, text_hash ORDER BY tier = 2 DESC, tier, turn, tile_id) = 1
)
SELECT unit, "window", feature, split, 2 AS kind, tier,
    row_number() OVER (PARTITION BY feature, split, tier ORDER BY turn, tile_id) - 1 AS rank,
    "offset", length, text_hash
FROM once
QUALIFY rank < getvariable('n_negatives');
