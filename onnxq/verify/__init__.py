"""Is the quantized model as good: outputs against the float model's, latency, and whether it loads and runs at all."""
