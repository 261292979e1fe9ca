"""The contract with container runtimes (base) and the embedded one (oci). Knows no swarm objects."""
