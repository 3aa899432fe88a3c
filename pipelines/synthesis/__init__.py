"""From captions or pictures to a filtered data set for training instruction editors."""
