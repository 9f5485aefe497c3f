"""The stack on one machine, and the demo."""
