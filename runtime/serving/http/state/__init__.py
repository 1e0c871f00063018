"""What is loaded and how busy it is: models, health, and the service's state."""
