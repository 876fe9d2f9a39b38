"""What a training is expected to cost the tasks that are known already, told before it is over."""
