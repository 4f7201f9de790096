"""`python -m mesh.cli` is `llm-router`."""

from mesh.cli.entry import main

main()
