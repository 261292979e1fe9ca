"""The words of the field as plain data and pure rules. Imports nothing of ours."""
