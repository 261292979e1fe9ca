"""`overlace ...`: only what the docker CLI has no word for."""
