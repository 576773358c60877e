"""Bundles: what is on disk, what the manifest says of it, and the judges of untrusted files."""

from __future__ import annotations

from kosine.bundle.folder import Bundle

__all__ = ["Bundle"]
