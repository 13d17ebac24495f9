"""Engines: whoever computes statistics over a source's training rows."""
