"""Tell whether a machine can run a model, what stands in the way, and the next step.

Files are read below a root (``system_files``), judged (``judge_*``), and engines are proved by computing
(``prove_*``). Nothing is changed: commands are shown, never run. Not here: drawing (``cli.doctor``).
"""

from baichuan2_tpu.doctor.finding import Finding
from baichuan2_tpu.doctor.host import Host
from baichuan2_tpu.doctor.proofs.prove_engines import ProofSettings, prove
from baichuan2_tpu.doctor.report import Report, examine
from baichuan2_tpu.doctor.system_files import Machine
from baichuan2_tpu.doctor.tpu import find_tpu

__all__ = ["Finding", "Host", "Machine", "ProofSettings", "Report", "examine", "find_tpu", "prove"]
