"""manager: see ARCHITECTURE.md."""
