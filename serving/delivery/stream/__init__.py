"""Events as they are made, from a replica to the caller."""
