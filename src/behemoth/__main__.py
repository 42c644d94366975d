"""`python -m behemoth` is `behemoth`."""

from behemoth.cli import main

main()
