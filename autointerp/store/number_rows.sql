-- Gives every row its sequence (see migrations/004_sequence.sql): those of older versions, which have none, by their time,
-- and after them all others in the order that they have.

CREATE TEMP TABLE numbered AS
SELECT written_in, row_id, row_number() OVER (ORDER BY sequence NULLS FIRST, written_at, written_in, row_id) AS number
FROM (
    SELECT 'explanations' AS written_in, rowid AS row_id, sequence, created_at AS written_at FROM explanations
    UNION ALL
    SELECT 'scores' AS written_in, rowid AS row_id, sequence, created_at AS written_at FROM scores
    UNION ALL
    SELECT 'llm_calls' AS written_in, rowid AS row_id, sequence, created_at AS written_at FROM llm_calls
    UNION ALL
    SELECT 'runs' AS written_in, rowid AS row_id, sequence, started_at AS written_at FROM runs
    UNION ALL
    SELECT 'batches' AS written_in, rowid AS row_id, sequence, created_at AS written_at FROM batches
);

UPDATE explanations SET sequence = number FROM numbered WHERE written_in = 'explanations' AND row_id = explanations.rowid;
UPDATE scores SET sequence = number FROM numbered WHERE written_in = 'scores' AND row_id = scores.rowid;
UPDATE llm_calls SET sequence = number FROM numbered WHERE written_in = 'llm_calls' AND row_id = llm_calls.rowid;
UPDATE runs SET sequence = number FROM numbered WHERE written_in = 'runs' AND row_id = runs.rowid;
UPDATE batches SET sequence = number FROM numbered WHERE written_in = 'batches' AND row_id = batches.rowid;

DROP TABLE numbered;
