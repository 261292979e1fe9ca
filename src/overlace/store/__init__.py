"""The cluster's state: one interface (view, commit, watch), kept in memory or on SQLite. Knows no policy."""
