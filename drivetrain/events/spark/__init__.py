"""A table's plan on Spark: its steps as SQL and over Arrow, its rows laid down by the executors."""
