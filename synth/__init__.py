"""Makes labelled synthetic data sets with (conditional) GANs; never imports `eval`."""
