"""Delta Lake: versions that are read, and appends that happen exactly once."""
