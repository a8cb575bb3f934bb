"""`ensemblectl`, the command line."""
