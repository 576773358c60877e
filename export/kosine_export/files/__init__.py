"""The files of a checkpoint's folder, none of them trusted: JSON and weights."""
