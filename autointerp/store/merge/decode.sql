-- The token strings of the windows low .. high-1 that have no split character. Lists cannot spill, so a merge does this
-- for a bounded number of windows at a time. Variables: low, high.

INSERT INTO window_tokens
WITH flat AS (
    SELECT unit, "window", unnest(token_ids) AS token_id, generate_subscripts(token_ids, 1) AS place
    FROM window_texts
    WHERE number >= getvariable('low') AND number < getvariable('high')
)
SELECT unit, "window", list(piece ORDER BY place) AS tokens
FROM flat
LEFT JOIN pieces USING (token_id)
GROUP BY unit, "window"
HAVING bool_and(coalesce(whole, false));
