"""How well a model speaks, compared with the right text and recordings.

measures    sound against sound, words against words, intervals
listen      one model, all sentences, all ways of speaking; a program that hears words
"""
