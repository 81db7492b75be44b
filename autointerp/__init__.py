"""autointerp: from a language model's hidden activations to a labelled, scored, SQL-queryable dictionary of features."""

__version__ = "0.1.0"
