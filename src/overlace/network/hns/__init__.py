"""The Host Networking Service: HCN documents, their validation, desired minus actual."""
