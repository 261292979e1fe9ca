"""Subnets, VNIs, addresses, VIPs and published ports, as pure decisions over a view and what is in use."""
