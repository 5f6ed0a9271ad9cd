"""What is done to windows and documents of text before they are trained on."""
