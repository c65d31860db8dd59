"""The lab of the molecule scenarios: systemd hosts in name spaces of this machine."""
