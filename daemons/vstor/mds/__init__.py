"""The metadata server daemon."""
