"""The job index of a configuration, the same for gateways and replicas."""

from __future__ import annotations

from serving.config import JobOptions, ResolvedConfig
from serving.stores.jobs.redis_jobs import RedisJobs, jobs_config


def build_index(config: ResolvedConfig) -> RedisJobs:
    """Not started."""
    jobs = config.settings.jobs
    return RedisJobs(
        jobs_config(config.store_url, jobs.redis_timeout_s),
        secret=config.secret.encode(),
        max_open_per_owner=jobs.max_queued_per_tenant,
        max_attempts=max((model.options.max_attempts for model in config.models_with(JobOptions)), default=3),
        ttl_s=jobs.ttl_s,
    )
