"""From a model file to a callable: fetching, digest check, loading, warm-up, and the checks of what comes out."""
