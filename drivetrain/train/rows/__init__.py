"""Tables of rows on servers: look-ups, gradients, optimizers, snapshots."""
