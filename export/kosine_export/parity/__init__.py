"""PyTorch as the referee, and everything that is held against it."""
