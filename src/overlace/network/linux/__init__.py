"""The Linux data path: eBPF programs, their maps, veths, namespaces and nft rules. All root work of the
network."""
