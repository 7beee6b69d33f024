"""Optimizers and learning-rate schedules: what `optimizer=` and `scheduler=` name."""
