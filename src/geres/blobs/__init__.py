"""Larger outputs, inputs and packages, in a folder."""
