-- The order in which rows were written, one number each over all these tables: 1 came first. Clocks are set back, so
-- created_at does not say which of two rows is the later. A row that replaces one that gave up has a new number.

ALTER TABLE explanations ADD COLUMN sequence BIGINT;
ALTER TABLE scores ADD COLUMN sequence BIGINT;
ALTER TABLE llm_calls ADD COLUMN sequence BIGINT;
ALTER TABLE runs ADD COLUMN sequence BIGINT;
ALTER TABLE batches ADD COLUMN sequence BIGINT;
