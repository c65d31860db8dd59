"""The chunk server daemon."""
