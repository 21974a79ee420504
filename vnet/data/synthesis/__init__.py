"""Images drawn from label maps: truth is known exactly, the anatomy is real, the contrast is set."""
