"""What all of synth uses: errors, files, progress, registries, schemas."""
