"""Loaded bundles and their runs: columns to arrays, batches, shared weights, statistics."""
