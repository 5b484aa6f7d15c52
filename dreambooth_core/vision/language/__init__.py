"""Vision-language models: images and a question in, a validated answer out; text output only.

Nothing is sent unless a config sets a server (`vision.url`).

    model.py        VisionLanguageModel: ask (schema), choose (probabilities), locate (boxes); Conversation
    messages.py     requests: text, images, video frames
    answers.py      JSON of a response, validated against a schema; tokens and cost of an answer
    boxes.py        bounding boxes of a response, as fractions of width and height
    images.py       images as PNG without metadata, of bounded size
    spending.py     budget, rate limit and counts per process
    backends/       one file each: servers with OpenAI's chat interface, models loaded into this process
"""
