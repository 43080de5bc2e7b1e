"""How a model learns, and what a run leaves on disk. Names no concrete model or task."""
