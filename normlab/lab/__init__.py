"""The lab: trains, evaluates and compares the same network under different norms."""
