"""schedule: see ARCHITECTURE.md."""
