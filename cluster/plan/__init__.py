"""What a preset costs: parameters, tokens, FLOPs, memory, disk and time, worked out before anything is run."""
