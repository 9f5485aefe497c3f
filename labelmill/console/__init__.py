"""How a terminal shows things, and where a command writes."""
