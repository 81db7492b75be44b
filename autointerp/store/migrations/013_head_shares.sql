-- How much of each feature's decoder row belongs to each attention head, for dictionaries of the heads' outputs.

CREATE TABLE head_shares (
    dictionary_id INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    head INTEGER NOT NULL,
    decoder_share FLOAT NOT NULL,       -- of the squared length of the decoder row
    output_share FLOAT NOT NULL         -- of the squared lengths of what the heads' parts write through W_O
);
