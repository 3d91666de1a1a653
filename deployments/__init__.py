"""The Ray Serve deployments: thin shells over the pure packages, and the only place that imports
ray."""
