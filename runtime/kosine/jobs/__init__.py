"""Everyday jobs on files of texts: reading, encoding in windows, writing, resuming, comparing."""
