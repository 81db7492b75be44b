-- Words of the model's vocabulary, without spaces and case, with their nearest neighbours in the input embedding.

CREATE TABLE near_words (
    dictionary_id INTEGER NOT NULL,
    word VARCHAR NOT NULL,
    near VARCHAR[] NOT NULL,            -- nearest first
    cosine FLOAT[] NOT NULL             -- of each of them, with the embedding's leading directions taken out
);
