"""The store of several managers, on etcd: its client, the member process, the election, the store itself. Knows no
policy and has no consensus of its own: what is committed, and who leads, etcd decides."""
