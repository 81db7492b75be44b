-- From which activation on the label holds; only in a scorer's headline row. NULL in rows that were written before.

ALTER TABLE scores ADD COLUMN label_from DOUBLE;           -- raw units; 0: wherever the feature fires
ALTER TABLE scores ADD COLUMN from_status VARCHAR;         -- 'ok', or why there is none
ALTER TABLE scores ADD COLUMN from_share DOUBLE;           -- of the active tiles, those that reach it
ALTER TABLE scores ADD COLUMN from_mass DOUBLE;            -- of the activation, what lies in those tiles
ALTER TABLE scores ADD COLUMN from_precision DOUBLE;
ALTER TABLE scores ADD COLUMN from_precision_low DOUBLE;
ALTER TABLE scores ADD COLUMN from_precision_high DOUBLE;
ALTER TABLE scores ADD COLUMN from_recall DOUBLE;
ALTER TABLE scores ADD COLUMN from_recall_low DOUBLE;
ALTER TABLE scores ADD COLUMN from_recall_high DOUBLE;
ALTER TABLE scores ADD COLUMN from_n INTEGER;              -- sampled active tiles measured
ALTER TABLE scores ADD COLUMN from_floor DOUBLE;           -- score.label_precision
