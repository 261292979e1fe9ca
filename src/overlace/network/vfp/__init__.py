"""The Virtual Filtering Platform: ports, layers, rules; compiled to tables; a simulator that defines them. Pure."""
