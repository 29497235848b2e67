"""Exercises about boxes, RoI layers and masks."""

EXERCISES = []
