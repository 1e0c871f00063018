"""What a bundle will take on a device, by calculation."""
