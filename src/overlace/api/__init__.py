"""The Docker Engine API: routes by noun, types, conversion, streams. Changes the swarm through manager/control only."""
