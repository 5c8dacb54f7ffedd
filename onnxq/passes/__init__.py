"""Whole-graph steps that change a float model without changing what it computes."""
