"""Sweeps: each job a command of its own, so that none costs another, and known again by its configuration."""
