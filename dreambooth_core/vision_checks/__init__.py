"""Checks of the configured vision-language model: one per capability, on images with known contents.

capabilities.py   the table: a function and a limit per capability
questions.py      questions and schemas
pictures.py       the images of `material/` with their truth
"""
