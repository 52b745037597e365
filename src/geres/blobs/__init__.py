"""Bytes too large for the database: outputs of tasks, by key, in a folder."""
