"""What the strategy of two towers trains: pairs, towers, their softmax, and its served nodes."""
