"""`python -m pushgate`."""

from pushgate.cli import main

main()
