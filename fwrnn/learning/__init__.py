"""The loop, run folders, tracking, signals: what every kind of learning shares."""
