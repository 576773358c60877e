"""Encoder kernels: they know arrays only, nothing of bundles or texts."""
