"""The batcher's promises as experiments with real threads and injected faults."""
