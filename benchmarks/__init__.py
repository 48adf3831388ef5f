"""How fast this is, and what it costs: README.md tells what is measured and how to read it."""
