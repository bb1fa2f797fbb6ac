"""Durable jobs at the gateway: admission, and all that clients may ask of a job afterwards, whatever the task."""
