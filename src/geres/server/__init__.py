"""The server process: loops, dispatching, stopping in order."""
