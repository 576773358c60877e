"""Whatever tokenizer a checkpoint has, as one `tokenizer.json`."""
