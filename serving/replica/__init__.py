"""The inner deployments: what runs a model, and what feeds it."""
