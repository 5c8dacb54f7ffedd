"""Orthogonal matrices in the weights of a float graph that learn what its quantization will lose least with."""
