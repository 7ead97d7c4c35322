"""`python -m srcli`."""

from srcli.cli.main import main

main()
