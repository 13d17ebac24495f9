"""Layers that are cut over processes."""
