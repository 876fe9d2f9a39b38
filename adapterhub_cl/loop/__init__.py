"""The loop that learns from production: what has gathered, a lesson from it, a canary, a decision."""
