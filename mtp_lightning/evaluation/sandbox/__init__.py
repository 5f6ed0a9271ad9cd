"""Runs programs that nobody has read, so that they can harm nothing: rlimits, Landlock and seccomp, and namespaces
where they are to be had. Needs Linux and the standard library alone."""

from mtp_lightning.evaluation.sandbox.programs import Limits, Outcome, Program, Verdict
from mtp_lightning.evaluation.sandbox.run import Sandbox, SandboxError

__all__ = ["Limits", "Outcome", "Program", "Sandbox", "SandboxError", "Verdict"]
