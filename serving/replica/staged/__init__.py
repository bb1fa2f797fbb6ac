"""Networks with early exits, advanced exit by exit."""
