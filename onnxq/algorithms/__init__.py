"""Weight algorithms: pure functions on arrays, one file each."""
