"""The guard against pictures and requests that are crafted to burn energy; its pure half is in ``schedulers``."""
