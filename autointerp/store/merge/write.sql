-- Into the attached database `building`. Variables: dictionary_id, harvest_id, corpus_id, store_id, now.

INSERT INTO building.windows BY NAME
SELECT (getvariable('harvest_id')::BIGINT << 40) + i.number AS window_id, getvariable('corpus_id') AS corpus_id,
    w.document, w.start, w.n_prefix, ['explain', 'select', 'report'][w.split + 1] AS split, w.token_ids, t.tokens
FROM window_ids AS i
JOIN kept_windows AS w USING (unit, "window")
JOIN window_tokens AS t USING (unit, "window")
ORDER BY window_id;

INSERT INTO building.context_rows BY NAME
WITH numbered AS (
    SELECT *, row_number() OVER (ORDER BY feature, split, kind, tier, rank) - 1 AS number
    FROM (
        SELECT unit, "window", feature, split, kind, tier, rank, probability, decile, "offset", length, peak,
            "value", text_hash, positions, "values"
        FROM active_contexts
        UNION ALL
        SELECT unit, "window", feature, split, kind, tier, rank, NULL, NULL, "offset", length, "offset",
            0::FLOAT, text_hash, [], []
        FROM negative_contexts
    )
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

INSERT INTO building.harvest_info BY NAME
SELECT getvariable('harvest_id') AS harvest_id, getvariable('dictionary_id') AS dictionary_id,
    getvariable('corpus_id') AS corpus_id, getvariable('store_id') AS store_id,
    (SELECT sae_sha256 FROM dictionaries WHERE dictionary_id = getvariable('dictionary_id')) AS sae_sha256,
    (SELECT count(*) FROM building.context_rows) AS n_contexts,
    getvariable('now')::TIMESTAMP AS created_at;

-- The other dictionaries keep what they have; this one keeps one harvest.
INSERT INTO building.windows
SELECT w.* FROM evidence.windows AS w
WHERE w.window_id >> 40 IN (
    SELECT harvest_id FROM evidence.harvest_info WHERE dictionary_id <> getvariable('dictionary_id')
)
ORDER BY w.window_id;

INSERT INTO building.context_rows
SELECT * FROM evidence.context_rows
WHERE dictionary_id <> getvariable('dictionary_id')
ORDER BY dictionary_id, feature, split, kind, tier, rank;

INSERT INTO building.harvest_info
SELECT * FROM evidence.harvest_info WHERE dictionary_id <> getvariable('dictionary_id');
