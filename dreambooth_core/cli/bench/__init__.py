"""Published evaluation protocols, one file each."""
