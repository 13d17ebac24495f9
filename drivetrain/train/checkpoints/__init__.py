"""Checkpoints: whole or absent, written behind the training's back, in parts, and read again."""
