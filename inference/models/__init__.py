"""Model files: their headers, the store, what fits, and the pool of loaded ones."""
