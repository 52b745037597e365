"""`python -m geres`: the command line."""

from geres.cli.main import main

main()
