"""From noise to latents: samplers as frozen values, so that any step can be the first of a later attempt."""
