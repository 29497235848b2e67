"""Ratios against torch and torchvision in one run; see ``python -m tests.benchmarks --help``."""
