"""TensorBoard, pictures, tables and the page."""
