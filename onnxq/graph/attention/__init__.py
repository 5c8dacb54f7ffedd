"""In: a prepared decoder. Out: one whose attention is GroupQueryAttention, and what its caches are called and hold.

May import what `onnxq.graph` may.
"""
