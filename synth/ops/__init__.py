"""Fast layers and training steps. They compute what torch's own compute, up to rounding."""
