-- The evidence file: large, immutable once merged, replaced as a whole. Run with the evidence file's own connection
-- (`duckdb.connect(new_file)`) or, attached, after `USE evidence`. Load context_rows in the order dictionary_id,
-- feature, split, kind, tier, rank (zone maps then find a feature's rows without an index) and windows by window_id.

CREATE TABLE harvest_info (
    harvest_id INTEGER NOT NULL,
    dictionary_id INTEGER NOT NULL,
    corpus_id INTEGER NOT NULL,
    store_id VARCHAR,                   -- Store.store_id of the main file this evidence was merged for
    sae_sha256 VARCHAR,
    n_contexts BIGINT,
    created_at TIMESTAMP
);

CREATE TABLE windows (
    window_id BIGINT NOT NULL,
    corpus_id INTEGER NOT NULL,
    document VARCHAR NOT NULL,
    start INTEGER NOT NULL,             -- position in the document's tokens of the first token that is not a prefix
    n_prefix INTEGER NOT NULL,          -- leading tokens added for the model (BOS); of no document, never counted
    split VARCHAR NOT NULL,             -- explain, select, report
    token_ids INTEGER[] NOT NULL,
    tokens VARCHAR[] NOT NULL           -- exactly what the model saw, prefix included; joined they are the text
);

CREATE TABLE context_rows (
    context_id BIGINT NOT NULL,
    dictionary_id INTEGER NOT NULL,
    harvest_id INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    split VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,              -- top, sampled, negative
    tier VARCHAR,                       -- negatives only: random, same_token, neighbour
    decile TINYINT,                     -- 0 weakest .. 9 strongest; NULL for negatives
    sampling_probability DOUBLE,
    rank INTEGER NOT NULL,              -- 0 first, within feature, split, kind and tier
    window_id BIGINT NOT NULL,
    "offset" INTEGER NOT NULL,          -- of the first token, in the window's tokens (prefix counted)
    length INTEGER NOT NULL,
    position INTEGER NOT NULL,          -- of the peak (negatives: of the first token), in the document's tokens
    positions USMALLINT[] NOT NULL,     -- of the active tokens, relative to "offset", ascending
    "values" FLOAT[] NOT NULL,          -- their activations, raw units
    max_activation FLOAT NOT NULL,
    text_hash UBIGINT
);

-- Tiles drawn from the corpus at large, in which it is known of every feature whether it fires. tile_id counts from 0
-- within a harvest and split, in the order in which windows were drawn.
CREATE TABLE known_tiles (
    harvest_id INTEGER NOT NULL,
    split VARCHAR NOT NULL,
    tile_id INTEGER NOT NULL,
    window_id BIGINT NOT NULL,
    "offset" INTEGER NOT NULL,          -- of the first token, in the window's tokens (prefix counted)
    length INTEGER NOT NULL
);

-- In how many of all tiles of a split a feature fires.
CREATE TABLE active_tiles (
    harvest_id INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    split VARCHAR NOT NULL,
    n BIGINT NOT NULL
);

-- The known tiles in which a feature fires; in all others it is silent. Loaded in the order harvest, feature, split.
CREATE TABLE firing_tiles (
    harvest_id INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    split VARCHAR NOT NULL,
    tile_id INTEGER NOT NULL
);

CREATE VIEW contexts AS
SELECT
    c.context_id,
    c.dictionary_id,
    c.harvest_id,
    c.feature,
    c.split,
    c.kind,
    c.tier,
    c.decile,
    c.sampling_probability,
    c.rank,
    w.document,
    c.position,
    c.window_id,
    c."offset",
    w.tokens[c."offset" + 1 : c."offset" + c.length] AS tokens,
    list_transform(
        range(c.length),
        lambda i: coalesce(list_extract(c."values", list_position(c.positions, i::USMALLINT)), 0::FLOAT)
    )::FLOAT[] AS activations,
    c.max_activation,
    array_to_string(w.tokens[c."offset" + 1 : c."offset" + c.length], '') AS text
FROM context_rows AS c
JOIN windows AS w USING (window_id);
