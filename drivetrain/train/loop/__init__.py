"""The one loop, its step, and what happens around an update."""
