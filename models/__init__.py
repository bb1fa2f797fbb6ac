"""Model code: architectures, checkpoints, early exits, training of the nano checkpoints.

Importing this package imports nothing else; ``models.registry`` and the processors need neither torch nor a GPU.
"""
