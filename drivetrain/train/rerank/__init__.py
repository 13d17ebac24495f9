"""What a ranked list goes through in the graph before it is answered, whoever ranked it."""
