"""`python -m iusp` is `iusp`: what torchrun starts is a module."""

from iusp.cli.main import main

main(prog_name="iusp")
