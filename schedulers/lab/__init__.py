"""Policies on a virtual clock: a simulator, and the baselines that ours are measured against."""
