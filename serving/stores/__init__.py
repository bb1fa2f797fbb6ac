"""What outlives a request: results and quotas in Redis, behind timeouts and a breaker, failing open."""
