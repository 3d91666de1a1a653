"""The Ray Serve deployments: thin shells around the pure packages. Only this one imports Ray."""
