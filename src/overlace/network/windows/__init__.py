"""A Windows host's own HNS, through its DLLs."""
