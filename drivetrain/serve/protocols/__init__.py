"""What requests mean: V2, TensorFlow Serving, rows, over HTTP and gRPC, into one kind of call."""
