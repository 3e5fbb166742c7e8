"""`python -m rollforce` is the command `rollforce`."""

from rollforce.cli.main import main

main()
