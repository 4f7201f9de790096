"""One module for each wire format that clients speak."""
