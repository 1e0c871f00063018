"""EchoVLM Edge: EchoVLM, a vision-language model for ultrasound, from its checkpoint to a report service."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("echovlm-edge")
