"""Streaming, mergeable, serializable statistics of values, and the range methods that read them."""
