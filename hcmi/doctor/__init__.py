"""`hcmi doctor`: check a folder of videos, the parameters and this machine before a long run.

A sample of the videos is decoded as the `shards` stage would do it. The report projects disk space, time and failures
to the whole folder and lists every problem that would end or spoil the run.
"""

from hcmi.doctor.report import doctor, report_text

__all__ = ["doctor", "report_text"]
