"""Durable jobs at the gateway: admission, and everything that clients may ask about a job later, whatever the task."""
