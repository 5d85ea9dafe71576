"""What the network is: text in, checked objects out."""
