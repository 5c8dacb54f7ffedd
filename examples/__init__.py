"""Examples: each file is one to copy from."""
