"""ENTRep kit: classify ear, nose and throat endoscopy and retrieve pictures by picture or phrase."""

__version__ = "0.1.0"
