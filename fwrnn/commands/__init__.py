"""One file per command; ``fwrnn.cli`` finds them."""
