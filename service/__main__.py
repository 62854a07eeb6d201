"""`python -m service` is the `secondpass` command."""

from service.cli import main

main()
