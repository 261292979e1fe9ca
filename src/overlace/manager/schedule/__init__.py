"""Which node runs a task: filters, rank, placement and the reasons, as pure decisions over a view."""
