"""oci: see ARCHITECTURE.md."""
