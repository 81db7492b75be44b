-- The windows that contexts and known tiles refer to, numbered in the corpus's order. Variable: known_tiles.

CREATE OR REPLACE TEMP TABLE window_ids AS
SELECT unit, "window", row_number() OVER (ORDER BY unit, "window") - 1 AS number
FROM (
    SELECT unit, "window" FROM active_contexts
    UNION
    SELECT unit, "window" FROM negative_contexts
    UNION
    SELECT unit, "window" FROM tiles WHERE tile_id < getvariable('known_tiles')
);

CREATE OR REPLACE TEMP TABLE window_texts AS
SELECT i.number, unit, "window", w.token_ids
FROM kept_windows AS w
JOIN window_ids AS i USING (unit, "window");

CREATE OR REPLACE TEMP TABLE window_tokens (unit INTEGER, "window" INTEGER, tokens VARCHAR[]);
