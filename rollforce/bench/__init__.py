"""Measuring the engine: cases with random weights, their time and memory, and how far they are from their floor.

It imports torch and what streams, and nothing else: no settings files, no diffusers.
"""
