"""Formats: bytes in, objects out. No I/O."""
