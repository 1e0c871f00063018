"""Rehearse an installation from a release without a network, in a root of Debian that has Python and nothing else of this computer."""
