"""Ratios against torch and torchvision, side by side in one run; see ``python -m tests.benchmarks --help``."""
