"""overlace: see ARCHITECTURE.md."""
