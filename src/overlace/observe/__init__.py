"""observe: see ARCHITECTURE.md."""
