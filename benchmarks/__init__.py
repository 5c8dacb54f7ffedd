"""onnxq against its peers, one command a table; see README.md."""
