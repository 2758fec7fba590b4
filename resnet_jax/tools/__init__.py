"""Diagnosis of machine, data and compiled programs."""
