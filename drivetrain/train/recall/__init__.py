"""What the recall methods share: interactions, the graph that serves them, their declaration."""
