-- The first schema of the main file. Public: users write queries against it, so a rename needs a migration and a note.
-- No foreign keys (DuckDB then refuses later ALTERs of the parent); `Store.check` looks for dangling keys instead.
-- Only tables that are written row by row carry a primary key; bulk tables are kept clustered by feature, without index.

CREATE TABLE store_state (
    store_id VARCHAR NOT NULL,          -- made once, repeated in the row ledger and in the evidence file
    commit_number BIGINT NOT NULL       -- counts our transactions; the row ledger must not be ahead of it
);

CREATE TABLE settings (
    dictionary_id INTEGER,              -- NULL: of the whole store
    name VARCHAR NOT NULL,              -- label_explainer, label_scorer, views_sha256
    value VARCHAR
);

CREATE TABLE corpora (
    corpus_id INTEGER NOT NULL,
    source VARCHAR NOT NULL,
    config JSON,
    tokenizer_sha256 VARCHAR,
    n_documents BIGINT,
    n_tokens BIGINT,
    created_at TIMESTAMP NOT NULL       -- every time in the store is UTC
);

CREATE TABLE dictionaries (
    dictionary_id INTEGER NOT NULL,
    name VARCHAR NOT NULL UNIQUE,
    model VARCHAR NOT NULL,
    revision VARCHAR,
    hookpoint VARCHAR NOT NULL,
    output_hookpoint VARCHAR,           -- transcoders only
    architecture VARCHAR NOT NULL,
    d_in INTEGER NOT NULL,
    d_out INTEGER NOT NULL,
    d_sae INTEGER NOT NULL,
    sae_sha256 VARCHAR NOT NULL,
    tokenizer_sha256 VARCHAR NOT NULL,
    config JSON,
    created_at TIMESTAMP NOT NULL
);

CREATE TABLE harvests (
    harvest_id INTEGER NOT NULL,
    dictionary_id INTEGER NOT NULL,
    corpus_id INTEGER NOT NULL,
    n_tokens BIGINT NOT NULL,
    config JSON,
    report JSON,                        -- counters of the pass: NaN activations, halved batches, ...
    created_at TIMESTAMP NOT NULL
);

CREATE TABLE features (
    dictionary_id INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    harvest_id INTEGER NOT NULL,
    status VARCHAR NOT NULL,            -- live, rare, dead, no_heldout
    density DOUBLE NOT NULL,            -- share of tiles in which it fires
    token_density DOUBLE NOT NULL,      -- share of tokens on which it fires
    n_active_tiles BIGINT NOT NULL,
    n_active_tokens BIGINT NOT NULL,
    max_activation DOUBLE NOT NULL,     -- raw units; 0 where dead
    mean_activation DOUBLE NOT NULL,    -- over active tokens; 0 where dead
    explain_max_activation DOUBLE NOT NULL, -- largest on the explain split: the scale of every 0..10 number
    histogram_edges FLOAT[],
    histogram_counts BIGINT[]
);

CREATE TABLE vocab_projection (
    dictionary_id INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    sign TINYINT NOT NULL,              -- 1 promoted, -1 suppressed
    rank INTEGER NOT NULL,              -- 0 is the strongest
    token_id INTEGER NOT NULL,
    token VARCHAR NOT NULL,
    logit FLOAT NOT NULL
);

CREATE TABLE explanations (
    explanation_id VARCHAR PRIMARY KEY,
    dictionary_id INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    harvest_id INTEGER NOT NULL,
    explainer VARCHAR NOT NULL,
    model VARCHAR NOT NULL,
    template_sha256 VARCHAR NOT NULL,
    evidence_sha256 VARCHAR NOT NULL,
    seed BIGINT NOT NULL,
    text VARCHAR,                       -- NULL unless status is ok
    status VARCHAR NOT NULL,
    error VARCHAR,
    rule VARCHAR,                       -- JSON of a machine-checkable rule, where the explainer makes one
    input_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    cost_usd DOUBLE NOT NULL,
    created_at TIMESTAMP NOT NULL
);

CREATE TABLE scores (
    score_id VARCHAR PRIMARY KEY,
    dictionary_id INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    explanation_id VARCHAR,             -- NULL for label-free scorers
    harvest_id INTEGER NOT NULL,
    scorer VARCHAR NOT NULL,
    method VARCHAR NOT NULL,
    control VARCHAR,                    -- NULL: a real score
    part VARCHAR NOT NULL,              -- select, report
    model VARCHAR NOT NULL,
    template_sha256 VARCHAR NOT NULL,
    seed BIGINT NOT NULL,
    value DOUBLE,                       -- NULL unless status is ok
    ci_low DOUBLE,
    ci_high DOUBLE,
    n BIGINT NOT NULL,
    n_failed BIGINT NOT NULL,
    status VARCHAR NOT NULL,
    error VARCHAR,
    created_at TIMESTAMP NOT NULL
);

CREATE TABLE predictions (
    score_id VARCHAR NOT NULL,
    context_id BIGINT NOT NULL,
    truth FLOAT[],
    predicted FLOAT[],                  -- NULL unless status is ok
    status VARCHAR NOT NULL
);

CREATE TABLE sae_metrics (
    dictionary_id INTEGER NOT NULL,
    corpus_id INTEGER,
    split VARCHAR,
    metric VARCHAR NOT NULL,
    value DOUBLE,
    ci_low DOUBLE,
    ci_high DOUBLE,
    n_tokens BIGINT
);

CREATE TABLE training_metrics (
    dictionary_id INTEGER NOT NULL,
    step BIGINT NOT NULL,
    metric VARCHAR NOT NULL,
    value DOUBLE                        -- NULL where it was not finite
);

CREATE TABLE llm_calls (
    request_sha256 VARCHAR NOT NULL,
    sample INTEGER NOT NULL,
    run_id VARCHAR NOT NULL,
    dictionary_id INTEGER,
    feature INTEGER,
    stage VARCHAR NOT NULL,
    model VARCHAR NOT NULL,
    status VARCHAR NOT NULL,
    reply VARCHAR,
    input_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    cost_usd DOUBLE NOT NULL,
    latency_s DOUBLE NOT NULL,
    attempts INTEGER NOT NULL,
    error VARCHAR,
    created_at TIMESTAMP NOT NULL,
    PRIMARY KEY (request_sha256, sample)
);

CREATE TABLE runs (
    run_id VARCHAR NOT NULL,
    command VARCHAR NOT NULL,
    started_at TIMESTAMP NOT NULL,
    finished_at TIMESTAMP,
    status VARCHAR NOT NULL,            -- running, done, failed, stopped
    exit_code INTEGER,
    config JSON,
    versions JSON
);
