"""What expressions mean to each engine: operators, terms of SQL, and how engines write them."""
