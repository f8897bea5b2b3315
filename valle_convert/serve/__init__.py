"""A converted model behind an OpenAI-compatible endpoint.

server    binds, loads the model, and shuts down in order
app       routes
gate      access, request ids, metrics for Prometheus
request   the JSON of a request, checked
worker    the one thread that owns llama.cpp, and its queue
voices    a folder of recordings and their codes, by name
sound     pieces of speech as mp3, wav, flac, opus or pcm, as soon as they are ready
refusal   errors in OpenAI's form
page.html the page at /
"""
