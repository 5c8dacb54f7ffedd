"""What becomes of each node and value: decisions as data, then their numbers."""
