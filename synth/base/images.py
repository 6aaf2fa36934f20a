"""The sizes of images. All are square."""

SIDE = 32  # pixels of SVHN, and of everything that says nothing else
SIDES = (28, 32, 64)  # that generators can make
