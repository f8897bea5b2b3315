"""The miniature: a small model of the family, trained here on speech made here; see README.md."""
