"""`python -m rollforce` is the command `rollforce`."""

from rollforce.cli import main

main()
