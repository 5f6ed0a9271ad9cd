"""Tasks of lm-eval on the models of the platform."""
