"""What every room of synth stands on: errors, files, progress."""
