"""The engine: regions brought to a grid, plans compiled from them, and volumes streamed through the plans."""
