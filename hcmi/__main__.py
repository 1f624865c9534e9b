"""`python -m hcmi`: the command of the tree in the working folder, whichever tree the installed `hcmi` belongs to."""

from hcmi.cli import main

main(prog_name="hcmi")
