"""Models cut into stages that lie in different processes."""
