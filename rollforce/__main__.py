"""`python -m rollforce` is the command `rollforce`."""

from rollforce.cli.start import main

main()
