"""`python -m twintune`."""

from twintune.cli import main

main()
