"""The encoder on an NVIDIA GPU: Triton kernels around cuBLASLt's products, on packed tokens."""
