"""vstor: replicated, strongly consistent storage for VMs, containers and shared files."""

__version__ = "0.1.0"
