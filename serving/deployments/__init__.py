"""The Ray Serve deployments: one file per node of the graph."""
