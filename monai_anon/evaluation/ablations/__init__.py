"""Tables 4 and 5 of the paper: variants of one training, each run, measured and drawn alike."""
