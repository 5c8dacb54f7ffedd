"""Models that are folders: those of onnxruntime-genai, optimum, transformers.js and sentence-transformers.

A folder comes in, a folder for the same runtime goes out, every graph in it quantized. May import all but api and cli.
"""
