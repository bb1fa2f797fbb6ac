"""Our methods on diffusers' transformers, by their interface: no family is known by name.

Read in this order: ``request`` (what one request brings around each call of a network), ``call`` (what happens to
attention meanwhile), ``hooks`` (where in a network that is noticed), ``applicable`` (what a network allows, and why
not).
"""
