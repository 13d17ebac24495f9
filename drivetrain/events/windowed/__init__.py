"""How rows get their windows: all of a spine at once, or from chunk to chunk."""
