"""`python -m labelmill` is the console command."""

from labelmill.cli import main

main()
