"""ENTRep kit: classify ENT endoscopy pictures and retrieve them by picture or phrase."""

__version__ = "0.1.0"
