"""TensorRT plans: which library, which shapes, the build, and what its log shows."""
