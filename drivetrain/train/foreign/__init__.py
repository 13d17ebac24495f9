"""Models of other frameworks under the one loop."""
