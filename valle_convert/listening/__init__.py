"""How good a model speaks: what is said, beside what should have been said.

measures    sound against sound, words against words, intervals
likelihood  how likely the true codes are, head by head
recogniser  a program that hears words
listen      one model, all sentences, all ways of speaking
"""
