"""What breaks things: a proxy that spoils HTTP, nodes that die, and programs that do both for a long time."""
