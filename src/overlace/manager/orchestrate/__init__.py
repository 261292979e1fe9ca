"""orchestrate: see ARCHITECTURE.md."""
