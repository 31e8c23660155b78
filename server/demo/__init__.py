"""The demo: three hospitals on one machine, driven only through the surfaces that a user has."""
