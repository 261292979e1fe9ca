"""vfp: see ARCHITECTURE.md."""
