"""The front door: HTTP and gRPC to domain types and back, authentication, limits while reading, error statuses."""
