"""The paper, cell by cell: its numbers, the runs that are ours, and whether these still hold."""
