"""What windows are read off: observations that a server keeps, by itself or in Redis."""
