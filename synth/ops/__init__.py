"""Layers and training steps that are fast on the machine at hand; results as torch's."""
