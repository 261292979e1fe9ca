"""Stand-ins for what a Windows host has: its DLLs, forwarding to `overlace hns serve`."""
