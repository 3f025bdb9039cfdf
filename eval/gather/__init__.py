"""What is gathered from large files of a run into the small ones that results are made from."""
