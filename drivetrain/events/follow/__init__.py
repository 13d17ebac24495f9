"""Streams that are followed: messages taken, cleaned, committed and told, each once."""
