"""The processes around Ray Serve, and what is known of those that live."""
