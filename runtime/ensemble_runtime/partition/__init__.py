"""One recurrent model over two devices: its graph, its schedule, and how it is run."""
