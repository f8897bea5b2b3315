"""A converted model behind an OpenAI-compatible endpoint.

server    binds, loads the model, and ends in order
app       routes
gate      who may ask; request ids and the count of answers
request   the JSON of a request, checked
worker    the one thread that owns llama.cpp, and the queue before it
voices    a folder of recordings and their codes, by name
sound     pieces of speech as mp3, wav, flac, opus or pcm, each as soon as it is there
metrics   what Prometheus reads
refusal   errors in OpenAI's form
page.html the page at /
"""
