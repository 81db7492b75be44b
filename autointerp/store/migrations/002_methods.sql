-- What the other evidence methods find, what scorers ask of the model, and what labels were made from.

ALTER TABLE explanations ADD COLUMN side VARCHAR;               -- input, output, both; NULL: not known, or no text
ALTER TABLE explanations ADD COLUMN derived_from VARCHAR[];     -- explanation_ids it was chosen from, joined of, revised from

-- One row for every feature and method that was run on it, failures included. `settings_sha256` is of all that the
-- finding depends on: with other settings the method is run again and its rows are replaced.
CREATE TABLE method_runs (
    dictionary_id INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    harvest_id INTEGER NOT NULL,
    method VARCHAR NOT NULL,            -- shape, words, neighbours, output_statistic, mutual_information, pruning, token_change
    settings_sha256 VARCHAR NOT NULL,
    status VARCHAR NOT NULL,            -- ok, no_contexts, ...
    error VARCHAR,
    n_forwards BIGINT NOT NULL,         -- sequences that the model read
    n_tokens BIGINT NOT NULL,
    created_at TIMESTAMP NOT NULL
);

CREATE TABLE neighbours (
    dictionary_id INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    relation VARCHAR NOT NULL,          -- decoder, coactive, correlated, anticorrelated
    rank INTEGER NOT NULL,              -- 0 is the nearest
    neighbour INTEGER NOT NULL,
    value DOUBLE NOT NULL               -- cosine; Jaccard index of the tokens where they fire; Pearson correlation (both)
);

CREATE TABLE feature_shapes (
    dictionary_id INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    harvest_id INTEGER NOT NULL,
    kind VARCHAR NOT NULL,              -- token, position, dense, rare, other
    unigram VARCHAR,                    -- the token on which it fires most
    unigram_purity DOUBLE,              -- its share of the active tokens, over uniform samples of where it fires
    position_dependence DOUBLE,         -- 0 fires anywhere in a window .. 1 the place alone says whether it fires
    is_dense BOOLEAN NOT NULL,
    is_rare BOOLEAN NOT NULL,
    text VARCHAR,                       -- the label, where the shape explains the feature
    rule VARCHAR                        -- JSON of the rule that it states
);

CREATE TABLE output_statistics (
    dictionary_id INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    kurtosis DOUBLE NOT NULL,           -- excess kurtosis of its logits over the vocabulary
    skew DOUBLE NOT NULL,
    threshold DOUBLE NOT NULL,          -- the kurtosis that 1 in 100 random directions exceeds
    is_output BOOLEAN NOT NULL          -- kurtosis > threshold
);

CREATE TABLE mutual_information (
    dictionary_id INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    mode VARCHAR NOT NULL,              -- pmi, paper
    rank INTEGER NOT NULL,
    word VARCHAR NOT NULL,
    score DOUBLE NOT NULL
);

CREATE TABLE input_words (
    dictionary_id INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    harvest_id INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    word VARCHAR NOT NULL,
    pmi DOUBLE NOT NULL,                -- log P(word, fires) / (P(word) P(fires)), nats
    g DOUBLE NOT NULL,                  -- G statistic of the 2 x 2 table of contexts
    p_value DOUBLE NOT NULL,            -- of G, Benjamini-Hochberg adjusted over the feature's words
    n_with_word INTEGER NOT NULL        -- of the feature's sampled contexts
);

CREATE TABLE pruned_contexts (
    dictionary_id INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    harvest_id INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    context_id BIGINT NOT NULL,
    mode VARCHAR NOT NULL,              -- delete, mask
    status VARCHAR NOT NULL,            -- ok, not_kept
    tokens VARCHAR[] NOT NULL,          -- the shortest that keeps the peak, which is the last
    importance FLOAT[] NOT NULL,        -- share of the activation lost without each token
    activation DOUBLE NOT NULL,
    full_activation DOUBLE NOT NULL,
    counterfactuals STRUCT("position" INTEGER, substitute VARCHAR, activation DOUBLE, kept BOOLEAN)[] NOT NULL
);

CREATE TABLE token_changes (
    dictionary_id INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    sign TINYINT NOT NULL,              -- 1 said more often, -1 less
    rank INTEGER NOT NULL,
    token_id INTEGER NOT NULL,
    token VARCHAR NOT NULL,
    delta DOUBLE NOT NULL,              -- mean change of the logit, relative to the mean over the vocabulary
    z DOUBLE NOT NULL,                  -- against random features at the same KL
    strength DOUBLE NOT NULL,           -- activation that the feature was clamped to, raw units
    kl DOUBLE NOT NULL                  -- nats per token, reached with it
);

-- Scorers that need the model: ask (a row here), measure (a row in measurements), judge (a row in scores).
CREATE TABLE measure_tasks (
    task_id VARCHAR PRIMARY KEY,
    dictionary_id INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    explanation_id VARCHAR,
    kind VARCHAR NOT NULL,
    payload JSON NOT NULL,
    created_at TIMESTAMP NOT NULL
);

CREATE TABLE measurements (
    task_id VARCHAR PRIMARY KEY,
    status VARCHAR NOT NULL,
    result JSON,
    error VARCHAR,
    n_forwards BIGINT NOT NULL,
    n_tokens BIGINT NOT NULL,
    created_at TIMESTAMP NOT NULL
);
