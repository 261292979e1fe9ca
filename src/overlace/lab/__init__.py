"""lab: see ARCHITECTURE.md."""
