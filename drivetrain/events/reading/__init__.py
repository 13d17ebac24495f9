"""Files as Arrow tables of bounded size."""
