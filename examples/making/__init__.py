"""Small models for the examples that have none to download; a reader has a model of their own in their place."""
