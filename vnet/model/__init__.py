"""The V-Net, its losses, and the model that is trained, saved and loaded."""
