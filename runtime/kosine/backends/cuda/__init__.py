"""kosine's own encoder on an NVIDIA GPU, on packed tokens."""
