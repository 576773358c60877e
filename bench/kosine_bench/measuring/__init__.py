"""A run of contestants: what is measured, by which process, on which machine."""
