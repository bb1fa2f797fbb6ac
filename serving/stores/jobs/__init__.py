"""Durable jobs: records and leases in Redis, artefacts in a shared store."""
