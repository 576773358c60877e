"""TensorRT plans on a GPU."""
