"""The manager: control (what people may change), the loop and its pure decisions, dispatcher, logs, registry.

Meets agents in wire/ only.
"""
