"""security: see ARCHITECTURE.md."""
