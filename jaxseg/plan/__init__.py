"""What a training step will cost on devices that are not there."""
