"""Vision-language models: pictures and a question in, a checked answer out."""
