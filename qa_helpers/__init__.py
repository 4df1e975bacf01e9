"""Helpers for the course: data, training and evaluation of question-answering models."""
