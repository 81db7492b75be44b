ALTER TABLE output_statistics ADD COLUMN p_value DOUBLE;  -- of kurtosis, Benjamini-Hochberg adjusted over the features
