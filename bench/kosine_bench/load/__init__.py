"""Latency under load of the batcher, measured and simulated."""
