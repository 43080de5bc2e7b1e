"""Runs side by side: found below folders, gathered over seeds, as a table, a picture or a page.

What is read may be half-written, broken or somebody else's: every read is bounded, nothing in a
file is run or interpolated, and text from a file is escaped where it is shown.
"""
