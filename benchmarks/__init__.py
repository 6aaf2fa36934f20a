"""Speed of synth against loops written the way people write them, in one run."""
