"""The host's network: overlay driver, HNS documents, VFP, DNS; all root work is in linux/."""
