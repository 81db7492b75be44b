"""autointerp: a language model's hidden activations as a labelled, scored, SQL-queryable dictionary of features."""

__version__ = "0.1.0"
