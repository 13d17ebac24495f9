"""Raw columns to model inputs: what must be known of the data, and one compiled graph."""
