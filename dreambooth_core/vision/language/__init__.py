"""Vision-language models: images and a question in, a validated answer out. They write text only.

Nothing is sent anywhere unless a config names a server (`vision.url`).

    model.py        VisionLanguageModel: ask (schema), choose (probabilities), locate (boxes); Conversation
    messages.py     what is asked: text, images, video frames
    answers.py      the JSON in what a model wrote, validated against a schema; what an answer cost
    boxes.py        coordinates in what a model wrote, as fractions of width and height
    images.py       images as PNG without metadata, of bounded size
    spending.py     budget, rate limit and counts of a process
    backends/       one file each: servers with OpenAI's chat interface, models in this process
"""
