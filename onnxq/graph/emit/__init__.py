"""Emitters: apply decisions to a graph, one file a format."""
