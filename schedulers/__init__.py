"""Decisions only: batching, deadlines, admission, routing, operating points, and a simulator. Standard library only.

Nothing here reads a clock, opens a socket or draws a random number of its own: time, events and generators come in as
arguments, decisions go out as values (docs/scheduler.md).
"""
