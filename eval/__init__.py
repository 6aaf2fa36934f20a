"""Says what a data set is worth; reads from `synth` nothing but the data types."""
