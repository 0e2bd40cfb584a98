"""The outcome study: do the losses make models rank better? README.md in the folder above says how it is run."""
