"""Text to the 70 symbols of VALL-E X, in English, Chinese and Japanese.

`tagged` splits a text at its language tags and joins the symbols. `english`, `chinese` and
`japanese` use the notation that the network was trained on, which is not espeak-ng's IPA.
"""
