"""The client: FUSE mount and library."""
