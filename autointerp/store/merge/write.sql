-- After the windows and contexts, into the attached database `building`. Variables: dictionary_id, harvest_id,
-- corpus_id, store_id, now.

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
