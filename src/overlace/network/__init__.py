"""network: see ARCHITECTURE.md."""
