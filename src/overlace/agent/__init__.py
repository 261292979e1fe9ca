"""agent: see ARCHITECTURE.md."""
