"""OpenVINO's core, one for the process: a core gives the thread that uses it first a stack for signals.

Where cores are freed in the order in which they were made, or in other threads, a stack is gone that is still in use:
the next signal, such as Ctrl-C, ends the process (2026.4; https://github.com/openvinotoolkit/openvino/pull/11894).
"""

import openvino

CORE = openvino.Core()
