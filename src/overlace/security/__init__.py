"""CA, join tokens, TLS contexts, a node's identity on disk. Knows neither managers nor agents."""
