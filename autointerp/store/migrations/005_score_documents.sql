-- Over how many documents and which contexts a score was taken, and by how much each document moves it. NULL in rows that
-- were written before, and where a score is not taken over contexts.

ALTER TABLE scores ADD COLUMN n_documents INTEGER;   -- different documents among the contexts with a prediction
ALTER TABLE scores ADD COLUMN n_by_kind JSON;        -- contexts asked about: {"top": 10, "sampled": 10, "random": 5, ...}
ALTER TABLE scores ADD COLUMN documents VARCHAR[];   -- those documents, in the order of `influences`
ALTER TABLE scores ADD COLUMN influences FLOAT[];    -- squares sum to the jackknife variance of `value`

-- A constant prediction of a truth that varies is worth 0. It had no value before, and so was left out of means.
UPDATE scores SET value = 0 WHERE status = 'constant_prediction' AND value IS NULL;
