"""The metadata store seam: etcd and in-memory."""
