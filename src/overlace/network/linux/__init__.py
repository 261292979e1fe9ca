"""linux: see ARCHITECTURE.md."""
