"""Training: the one Accelerate loop, its settings, LoRA through PEFT, and checkpoints that survive kill −9."""
