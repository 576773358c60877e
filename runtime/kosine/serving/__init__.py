"""Batching between callers: `batcher` is the door, `queue` the policy, `runner` the thread."""
