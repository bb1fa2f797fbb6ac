"""NitroFusion's few-step image generators, on a folder of SDXL."""
