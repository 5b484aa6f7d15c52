"""DreamBooth's ablations on the small world, and our recipe compared with diffusers' script."""
