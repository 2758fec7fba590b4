"""Tasks as values: what a network learns, how it is measured and what its outputs mean."""
