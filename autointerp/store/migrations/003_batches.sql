-- Requests that were handed to an endpoint's batch API, so that another process can fetch what this one paid for.

CREATE TABLE batches (
    batch_key VARCHAR NOT NULL,         -- ours, made before the upload, and told to the endpoint as metadata
    batch_id VARCHAR,                   -- the endpoint's; NULL until it acknowledged the batch
    run_id VARCHAR NOT NULL,
    model VARCHAR NOT NULL,
    base_url VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,              -- chat, completions, embeddings
    input_file_id VARCHAR,
    status VARCHAR NOT NULL,            -- uploading, created, then as it ended: completed, expired, cancelled, failed, never_created, lost
    n_requests BIGINT NOT NULL,
    error VARCHAR,
    created_at TIMESTAMP NOT NULL,
    finished_at TIMESTAMP               -- NULL: its results are still to be fetched
);

-- The requests of unfinished batches, and only of those: what a result has to be recorded under.
CREATE TABLE batch_requests (
    batch_key VARCHAR NOT NULL,
    custom_id VARCHAR NOT NULL,
    request_sha256 VARCHAR NOT NULL,
    sample INTEGER NOT NULL,
    dictionary_id INTEGER,
    feature INTEGER,
    stage VARCHAR NOT NULL,
    length_is_expected BOOLEAN NOT NULL,
    n_inputs INTEGER NOT NULL           -- texts of an embeddings request, else 0
);
