"""Tell whether a machine can run a model, what stands in the way, and the next step.

Files are read below a root (``machine``), judged (``checks_*``) and proved by computing (``proof``). Nothing
is changed: commands are told, never run. Not here: drawing the report (``cli``).
"""

from baichuan2_tpu.doctor.finding import Finding
from baichuan2_tpu.doctor.host import Host
from baichuan2_tpu.doctor.prove_engines import ProofSettings, prove
from baichuan2_tpu.doctor.report import Report, examine
from baichuan2_tpu.doctor.system_files import Machine
from baichuan2_tpu.doctor.tpu import find_tpu

__all__ = ["Finding", "Host", "Machine", "ProofSettings", "Report", "examine", "find_tpu", "prove"]
