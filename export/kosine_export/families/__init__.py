"""The families of encoders: what a `config.json` means, and whose tensors are whose."""
