"""The paper's ablations on the small world, and our recipe against diffusers' own script."""
