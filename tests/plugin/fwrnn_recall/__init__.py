"""A task, a core and a control for fwrnn."""
