"""Fast layers and training steps. They compute what torch computes."""
