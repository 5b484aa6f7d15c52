"""The small vision-language model: GLM-4.5V's architecture, trained on renders of the small world."""
