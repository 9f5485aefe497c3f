"""The commands of the console, one module each; `labelmill.cli` has their list."""
