"""A quantized model taken apart, each node on its own."""
