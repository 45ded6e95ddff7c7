"""The fusion decoder at run time: question, retrieved entries and picture in, words out."""
