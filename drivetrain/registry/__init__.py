"""Content-addressed bundles, the aliases that point at them, and what was measured of them."""
