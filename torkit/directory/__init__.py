"""Documents of the network: text in, checked objects out."""
