"""The gRPC side of the front door."""
