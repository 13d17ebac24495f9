"""Several processes as one server: who watches them, what they share, how they end."""
