-- The windows numbered low .. high-1, into the attached database `building`: a part at a time, as rows with lists are
-- wide to sort. Variables: low, high, harvest_id, corpus_id.

INSERT INTO building.windows BY NAME
SELECT (getvariable('harvest_id')::BIGINT << 40) + i.number AS window_id, getvariable('corpus_id') AS corpus_id,
    w.document, w.start, w.n_prefix, ['explain', 'select', 'report'][w.split + 1] AS split, w.token_ids, t.tokens
FROM window_ids AS i
JOIN kept_windows AS w USING (unit, "window")
JOIN window_tokens AS t USING (unit, "window")
WHERE i.number >= getvariable('low') AND i.number < getvariable('high')
ORDER BY window_id;
