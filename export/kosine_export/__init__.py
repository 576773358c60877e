"""Sentence-transformers checkpoints in, kosine bundles out."""
