"""The manager <-> agent protocol: messages, codec, the authenticated stream they travel on."""
