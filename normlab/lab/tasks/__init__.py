"""What is learned: loss and metrics, one file per task."""
