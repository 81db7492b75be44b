-- The contexts of the features low .. high-1, numbered from n_before on, into the attached database `building`.
-- Variables: low, high, n_before, dictionary_id, harvest_id.

INSERT INTO building.context_rows BY NAME
WITH numbered AS (
    SELECT *, getvariable('n_before') + row_number() OVER (ORDER BY feature, split, kind, tier, rank) - 1 AS number
    FROM (
        SELECT unit, "window", feature, split, kind, tier, rank, probability, decile, "offset", length, peak,
            "value", text_hash, positions, "values"
        FROM active_contexts
        UNION ALL
        SELECT unit, "window", feature, split, kind, tier, rank, NULL, NULL, "offset", length, "offset",
            0::FLOAT, text_hash, [], []
        FROM negative_contexts
    )
    WHERE feature >= getvariable('low') AND feature < getvariable('high')
)
SELECT (getvariable('harvest_id')::BIGINT << 40) + c.number AS context_id,
    getvariable('dictionary_id') AS dictionary_id,
    getvariable('harvest_id') AS harvest_id,
    c.feature,
    ['explain', 'select', 'report'][c.split + 1] AS split,
    ['top', 'sampled', 'negative'][c.kind + 1] AS kind,
    ['same_token', 'neighbour', 'random'][c.tier + 1] AS tier,
    c.decile,
    c.probability AS sampling_probability,
    c.rank,
    (getvariable('harvest_id')::BIGINT << 40) + i.number AS window_id,
    c."offset",
    c.length,
    w.start + c.peak - w.n_prefix AS position,
    c.positions,
    c."values",
    c."value" AS max_activation,
    c.text_hash::BIT::UBIGINT AS text_hash
FROM numbered AS c
JOIN window_ids AS i USING (unit, "window")
JOIN kept_windows AS w USING (unit, "window")
ORDER BY context_id;
