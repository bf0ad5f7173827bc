"""`python -m oxherd`."""

from oxherd.cli import main

main()
