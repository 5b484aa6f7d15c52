"""The paper's ablations on the small world, and our defaults against diffusers' own script."""
