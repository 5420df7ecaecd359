"""python -m graphwright."""

from .cli import main

main()
