-- Labels whose contexts a judge was asked about a second time, in other batches. The sums are of its errors, each less
-- the mean error of its class (activating, silent) for the label; view judge_consistency makes a correlation of them.
CREATE TABLE judge_repeats (
    repeat_id VARCHAR PRIMARY KEY,
    dictionary_id INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    explanation_id VARCHAR NOT NULL,
    harvest_id INTEGER NOT NULL,
    scorer VARCHAR NOT NULL,
    method VARCHAR NOT NULL,
    model VARCHAR NOT NULL,
    template_sha256 VARCHAR NOT NULL,
    seed BIGINT NOT NULL,
    n_twice INTEGER NOT NULL,           -- contexts that were answered both times
    n_agreed INTEGER NOT NULL,          -- of them, with the same answer
    n_answers INTEGER NOT NULL,         -- of both times
    square_sum DOUBLE NOT NULL,         -- of their errors
    n_within INTEGER NOT NULL,          -- pairs of answers of one call
    within_sum DOUBLE NOT NULL,         -- of the products of their errors
    n_between INTEGER NOT NULL,         -- pairs of answers of two calls, about two contexts
    between_sum DOUBLE NOT NULL,
    created_at TIMESTAMP NOT NULL
);
