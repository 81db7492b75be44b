-- What a feature promotes and suppresses by way of the blocks that come after it (evidence method jacobian_lens).

CREATE TABLE lens_tokens (
    dictionary_id INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    sign TINYINT NOT NULL,              -- 1 promoted, -1 suppressed
    rank INTEGER NOT NULL,
    token_id INTEGER NOT NULL,
    token VARCHAR NOT NULL,
    logit DOUBLE NOT NULL               -- relative to the mean over the vocabulary
);
