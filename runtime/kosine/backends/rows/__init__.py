"""Batches as rectangles, for the engines that compute on those; all of it without an engine."""
