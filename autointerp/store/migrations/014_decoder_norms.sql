-- How much of what a feature writes stands at each part of a joined hookpoint: at each layer that a crosscoder or a
-- cross-layer transcoder writes, or in each of two models that a crosscoder compares.

CREATE TABLE decoder_norms (
    dictionary_id INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    part INTEGER NOT NULL,              -- 0, 1 ...: the part's place in the hookpoint
    hookpoint VARCHAR NOT NULL,
    model VARCHAR NOT NULL,
    norm FLOAT NOT NULL,                -- of this part of the feature's decoder row, which as a whole has length 1
    share FLOAT NOT NULL                -- of the sum of the norms of all parts
);
