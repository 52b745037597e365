"""Measures geres against the bars of the project, each beside a floor taken in the same run."""
