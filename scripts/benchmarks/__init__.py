"""The parts of `scripts/benchmark.py`: each module measures one thing and returns plain numbers."""
