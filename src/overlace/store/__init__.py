"""The cluster's state: one interface (view, commit, watch), kept in memory, on SQLite or on etcd. Knows no policy."""
