"""Region-adaptive sampling: most denoising steps run a share of the tokens only.

Source: "Region-Adaptive Sampling for Diffusion Transformers", arXiv 2502.10389.
Differs from the official code: state belongs to a request, any grid and batch; importance is the safer formula
exp(k x skips) / (std + eps), of which the top is run.
"""
