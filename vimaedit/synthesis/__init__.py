"""Pairs of prompts for editing data sets: edits of captions by rule or by a text generator, and what makes two records alike."""
