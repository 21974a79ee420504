"""The study of Mask R-CNN with PointRend on nuclei: what `scripts/instances.py` needs."""
