"""hns: see ARCHITECTURE.md."""
