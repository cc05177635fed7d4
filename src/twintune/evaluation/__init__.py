"""Scoring answers: what a text answers, whether it is right, and how sure an accuracy is."""
