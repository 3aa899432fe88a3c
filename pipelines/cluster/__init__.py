"""The cluster that a run works on: its room, its workers, and what they tell."""
