-- The windows that contexts refer to, numbered in the corpus's order, and the token strings of those that have no split
-- character.

CREATE OR REPLACE TEMP TABLE window_ids AS
SELECT unit, "window", row_number() OVER (ORDER BY unit, "window") - 1 AS number
FROM (
    SELECT unit, "window" FROM active_contexts
    UNION
    SELECT unit, "window" FROM negative_contexts
);

CREATE OR REPLACE TEMP TABLE window_tokens AS
WITH flat AS (
    SELECT unit, "window", unnest(token_ids) AS token_id, generate_subscripts(token_ids, 1) AS place
    FROM kept_windows
    SEMI JOIN window_ids USING (unit, "window")
)
SELECT unit, "window", list(piece ORDER BY place) AS tokens
FROM flat
LEFT JOIN pieces USING (token_id)
GROUP BY unit, "window"
HAVING bool_and(coalesce(whole, false));
