-- The pool's tiles in an order that is random but fixed: by the windows' keys. A text keeps its first split only.
CREATE OR REPLACE TEMP TABLE tiles AS
SELECT t.split, t.unit, t."window", t.address, t."offset", t.length, t.text_hash,
    row_number() OVER (PARTITION BY t.split ORDER BY w.pool_key, t.unit, t."window", t.tile) - 1 AS tile_id
FROM kept_pool_tiles AS t
JOIN pool_windows AS w USING (unit, "window")
LEFT JOIN shared_texts AS s USING (text_hash)
WHERE s.first_split IS NULL OR s.first_split = t.split;

CREATE OR REPLACE TEMP TABLE alive AS SELECT DISTINCT feature, split FROM kept_stats;
