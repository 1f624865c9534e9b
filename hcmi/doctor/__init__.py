"""ROOM doctor."""

from hcmi.doctor.check import doctor, report_text

__all__ = ["doctor", "report_text"]
