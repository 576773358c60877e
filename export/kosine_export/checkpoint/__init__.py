"""A trained checkpoint, found and read: modules, adapter, pooling, limits, prompts."""
