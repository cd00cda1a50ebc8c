"""Hidden services: addresses, descriptors, names and the files that carry them."""
