"""The paper's tables and figures, and pictures of what the memory attends to."""
