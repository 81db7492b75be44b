-- Whether a label scores better than what a control puts in its place, for every feature: the latest score of each label
-- that has a control on the same contexts. It is made anew from `scores`, so nothing is lost with it.
CREATE TABLE label_controls (
    dictionary_id INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    explanation_id VARCHAR NOT NULL,
    explainer VARCHAR NOT NULL,
    model VARCHAR NOT NULL,             -- that explained
    scorer VARCHAR NOT NULL,
    method VARCHAR NOT NULL,
    scorer_model VARCHAR NOT NULL,
    control VARCHAR NOT NULL,
    score_id VARCHAR NOT NULL,          -- of the label's score
    control_score_id VARCHAR NOT NULL,
    difference DOUBLE NOT NULL,         -- the label's score minus the control's
    ci_low DOUBLE,
    ci_high DOUBLE,
    p_value DOUBLE,                     -- two-sided, by a paired jackknife over documents; NULL: too few documents
    q_value DOUBLE,                     -- p_value, Benjamini-Hochberg adjusted over the features
    beats BOOLEAN,                      -- q_value < 0.05 and difference > 0; NULL where p_value is
    n_documents INTEGER NOT NULL
);

-- `shuffled` was any other feature's label; it is one of a feature of like density now. The two are not the same control.
UPDATE scores SET control = 'shuffled_any_density' WHERE control = 'shuffled';
