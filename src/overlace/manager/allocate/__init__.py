"""allocate: see ARCHITECTURE.md."""
